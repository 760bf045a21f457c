/* Runs a program behind a gate: each of its system calls on files waits until this lets it pass, fails it, or kills the program there.
 *
 * Why not strace(1): it injects nothing into calls that are newer than itself (setxattrat, fchmodat2), counts the calls of each thread by itself, and
 * takes longer to attach than the operation that is looked at.
 *
 * seccomp(2) hands the calls over (SECCOMP_RET_USER_NOTIF). Standard output: the program's process id, then a line in answer to each line of input:
 *     arm N ERRNO    call N from now on (from 0) fails with that number; with 0 the program is killed on entry of it; N -1: all are noted down and pass
 *     pass           all pass, none is noted down
 *     calls          the calls since it was armed, with tabs between, and "* " before the one that was hit
 * The variable GATE holds N and ERRNO for the calls from the start. It ends as the program does, a signal as 128 + its number; and when nobody gives
 * orders any more it kills the program.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/openat2.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

/* By number, since headers may be older than the kernel. AT: the second argument is a name. */
enum { AT = 1 };
static const struct { int number; const char *name; int form; } CALLS[] = {
    {2, "open", 0}, {4, "stat", 0}, {5, "fstat", 0}, {6, "lstat", 0}, {8, "lseek", 0}, {16, "ioctl", 0}, {17, "pread64", 0}, {18, "pwrite64", 0},
    {20, "writev", 0}, {21, "access", 0}, {32, "dup", 0}, {40, "sendfile", 0}, {72, "fcntl", 0}, {73, "flock", 0}, {74, "fsync", 0},
    {75, "fdatasync", 0}, {76, "truncate", 0}, {77, "ftruncate", 0}, {82, "rename", 0}, {83, "mkdir", 0}, {84, "rmdir", 0}, {86, "link", 0},
    {87, "unlink", 0}, {88, "symlink", 0}, {89, "readlink", 0}, {90, "chmod", 0}, {91, "fchmod", 0}, {92, "chown", 0}, {93, "fchown", 0},
    {94, "lchown", 0}, {133, "mknod", 0}, {137, "statfs", 0}, {138, "fstatfs", 0}, {188, "setxattr", 0}, {189, "lsetxattr", 0},
    {190, "fsetxattr", AT}, {191, "getxattr", 0}, {192, "lgetxattr", 0}, {193, "fgetxattr", AT}, {194, "listxattr", 0}, {195, "llistxattr", 0},
    {196, "flistxattr", 0}, {197, "removexattr", 0}, {198, "lremovexattr", 0}, {199, "fremovexattr", AT}, {217, "getdents64", 0},
    {221, "fadvise64", 0}, {257, "openat", AT}, {258, "mkdirat", AT}, {259, "mknodat", AT}, {260, "fchownat", AT}, {262, "newfstatat", AT},
    {263, "unlinkat", AT}, {264, "renameat", AT}, {265, "linkat", AT}, {266, "symlinkat", 0}, {267, "readlinkat", AT}, {268, "fchmodat", AT},
    {269, "faccessat", AT}, {277, "sync_file_range", 0}, {280, "utimensat", AT}, {285, "fallocate", 0}, {296, "pwritev", 0}, {302, "prlimit64", 0},
    {303, "name_to_handle_at", AT}, {304, "open_by_handle_at", 0}, {306, "syncfs", 0}, {316, "renameat2", AT}, {326, "copy_file_range", 0},
    {328, "pwritev2", 0}, {332, "statx", AT}, {437, "openat2", AT}, {439, "faccessat2", AT}, {452, "fchmodat2", AT}, {463, "setxattrat", AT},
    {464, "getxattrat", AT}, {465, "listxattrat", AT}, {466, "removexattrat", AT}, {468, "file_getattr", AT}, {469, "file_setattr", AT},
};
enum { COUNT = sizeof CALLS / sizeof *CALLS };

static void die(const char *what) {
    fprintf(stderr, "gate: %s: %s\n", what, strerror(errno));
    exit(100);
}

/* The filter; its listener. */
static int install(void) {
    struct sock_filter code[COUNT + 6];
    int at = 0;
    code[at++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch));
    code[at++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 0, COUNT + 1);
    code[at++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (int i = 0; i < COUNT; i++)
        code[at++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, CALLS[i].number, COUNT - i, 0);
    code[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    code[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF);
    struct sock_fprog program = {.len = at, .filter = code};
    int listener = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
    if (listener < 0)
        die("seccomp");
    return listener;
}

/* A descriptor through a socket. */
static void give(int socket, int fd) {
    char byte = 0, control[CMSG_SPACE(sizeof fd)] = {0};
    struct iovec data = {&byte, 1};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    *header = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof fd)};
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
    if (sendmsg(socket, &message, 0) < 0)
        die("sendmsg");
}

static int take(int socket) {
    int fd;
    char byte, control[CMSG_SPACE(sizeof fd)];
    struct iovec data = {&byte, 1};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    if (recvmsg(socket, &message, MSG_CMSG_CLOEXEC) != 1 || !CMSG_FIRSTHDR(&message))
        die("recvmsg");
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
    return fd;
}

static pid_t program;
static int noting;
static long point = -1, number, fault;
static char *list;
static size_t length, room;

static void arm(const char *order) {
    if (sscanf(order, "%ld %ld", &point, &fault) != 2)
        die("an order without numbers");
    noting = 1;
    number = 0;
    length = 0;
}

static size_t peek(uint64_t address, void *to, size_t most) {
    struct iovec here = {to, most}, there = {(void *)address, most};
    ssize_t got = process_vm_readv(program, &here, 1, &there, 1, 0);
    if (got < 0 && most > 16) {
        /* The end of the memory there. */
        here.iov_len = there.iov_len = most = 16;
        got = process_vm_readv(program, &here, 1, &there, 1, 0);
    }
    return got < 0 ? 0 : got;
}

/* Notes down a call: its name ("+" if it makes or empties a file), its descriptor and the name that it is about. */
static void note(const struct seccomp_data *data, int hit) {
    int i = 0;
    while (i < COUNT - 1 && CALLS[i].number != data->nr)
        i++;
    char text[65] = "";
    uint64_t flags = data->args[2];
    if (CALLS[i].form == AT)
        text[peek(data->args[1], text, 64)] = 0;
    for (char *c = text; *c; c++)
        if (*c < ' ' || *c > '~')
            *c = '?';
    if (data->nr == 437) {
        struct open_how how;
        flags = peek(data->args[2], &how, sizeof how) == sizeof how ? how.flags : 0;
    }
    int makes = (data->nr == 257 || data->nr == 437) && (flags & (O_CREAT | O_TRUNC | (O_TMPFILE & ~O_DIRECTORY)));
    if (room - length < 256 && !(list = realloc(list, room = room * 2 + 4096)))
        die("realloc");
    length += sprintf(list + length, "%s%s%s%s(%d%s%s)", length ? "\t" : "", hit ? "* " : "", CALLS[i].name, makes ? "+" : "", (int)data->args[0],
                      *text ? "," : "", text);
}

static void serve(int listener) {
    static struct seccomp_notif event;
    memset(&event, 0, sizeof event);
    if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &event) < 0) {
        /* Whoever called has been killed. */
        if (errno != ENOENT && errno != EINTR)
            die("receive");
        return;
    }
    /* An answer that does not arrive is nobody's to tell: 20, writev, does not fail. */
    int hit = noting && number == point && !(fault && event.data.nr == 20);
    if (noting) {
        note(&event.data, hit);
        number++;
    }
    if (hit && fault == 0) {
        kill(program, SIGKILL);
        return;
    }
    struct seccomp_notif_resp answer = {.id = event.id, .error = hit ? -fault : 0, .flags = hit ? 0 : SECCOMP_USER_NOTIF_FLAG_CONTINUE};
    if (ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &answer) < 0 && errno != ENOENT && errno != EINPROGRESS)
        die("send");
}

int main(int count, char **words) {
    int pair[2];
    if (count < 2 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        die("start");
    program = fork();
    if (program == 0) {
        int listener = install();
        give(pair[1], listener);
        close(listener);
        dup2(open("/dev/null", O_RDWR), 0);
        dup2(2, 1);
        execv(words[1], words + 1);
        die(words[1]);
    }
    int ended = syscall(SYS_pidfd_open, program, 0);
    int listener = take(pair[0]);
    /* SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP: faster, since Linux 6.6. */
    if (ioctl(listener, SECCOMP_IOW(4, uint64_t), 1) < 0 && errno != EINVAL && errno != ENOTTY)
        die("wake up");
    close(pair[0]);
    close(pair[1]);
    if (getenv("GATE"))
        arm(getenv("GATE"));
    printf("%d\n", program);
    fflush(stdout);
    for (;;) {
        struct pollfd polled[] = {{.fd = listener, .events = POLLIN}, {.fd = 0, .events = POLLIN}, {.fd = ended, .events = POLLIN}};
        if (poll(polled, 3, -1) < 0)
            die("poll");
        if (polled[0].revents & POLLIN)
            serve(listener);
        if (polled[1].revents) {
            char order[64];
            ssize_t got = read(0, order, sizeof order - 1);
            order[got > 0 ? got : 0] = 0;
            if (got <= 0) {
                kill(program, SIGKILL);
                close(0);
                if (open("/dev/null", O_RDWR) != 0 || waitpid(program, NULL, 0) < 0)
                    die("end");
                return 0;
            }
            if (strncmp(order, "arm ", 4) == 0)
                arm(order + 4);
            else if (strncmp(order, "pass", 4) == 0)
                noting = 0;
            printf("%.*s\n", strncmp(order, "calls", 5) ? 0 : (int)length, list ? list : "");
            fflush(stdout);
        }
        if (polled[2].revents) {
            int status;
            if (waitpid(program, &status, 0) < 0)
                die("wait");
            return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
        }
    }
}
