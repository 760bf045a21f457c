//! Operations of every kind on objects in every state: what the sweeps of faults and power cuts go through besides random cases.

use crate::case::Case;

/// Two layers that hold something of everything.
const LAYERS: &str = "layer
  d /m m=755 t=5
  f /m/top \"top\"
  d /o opaque
  f /o/new \"new\"
  w /gone
layer
  d /d m=1777 t=7
  d /d/e
  f /d/f \"data.of.f\" m=640 u=7 g=8 t=9
  f /f \"data.of.a.file\" m=4755 t=11 user.a \"1\"
  f /gone \"gone\"
  f /d/h3 \"of.three.names\" t=12
  h /h1 /d/h3
  h /h2 /d/h3
  l /l \"target\"
  d /m
  f /m/low \"low\"
  d /m/sub
  f /m/sub/f \"deep\"
  d /o
  f /o/hidden \"hidden\"
  p /p
  f /z \"\"
";

/// What is done, and after the bar the operation that is looked at.
const OPERATIONS: &str = "
| chmod /f 600
| chown /f 7 8
| utimes /f 3
| setxattr /f user.b \"2\"
| removexattr /f user.a
| append /f \"more\"
| append /z \"more\"
| writeat /d/f 2 \"XY\"
| truncate /f 0
| truncate /f 3
| truncate /f 40
| open /f write @0
| open /f trunc @0
| create /f 644 trunc
| chmod /d 2755
| setxattr /m user.b \"2\"
| chmod /p 600
| chown /l 7 8
| chmod /h1 600
| append /h2 \"more\"
| truncate /d/h3 0
chmod /f 644 | append /f \"more\"
chmod /f 4711 | truncate /f 0
chmod /f 644 | open /f write @0
chmod /h1 600 | append /h2 \"more\"
chmod /h1 600 | chmod /h2 640
append /h1 \"x\" | append /h2 \"more\"
open /f @0; append /f \"x\" | read @0 0 40
| create /new 640
| create /d/new 2640
| create /gone 640
| mkdir /new 755
| mkdir /m/sub/new 755
| mkdir /gone 755
| mkfifo /new 600
| mkfifo /gone 600
| mkchar /new 600 0
| mkchar /gone 600 259
| symlink /new \"to\"
| symlink /gone \"to\"
chmod /d 2755 | mkdir /d/new 755
unlink /f | create /f 600
unlink /f | mkdir /f 700
unlink /f | symlink /f \"x\"
unlink /d/f; unlink /d/h3; rmdir /d/e; rmdir /d | mkdir /d 755
unlink /d/f; unlink /d/h3; rmdir /d/e; rmdir /d | create /d 644
| link /f /new
| link /f /gone
| link /l /new
| link /p /d/new
| link /h1 /new
| link /h1 /gone
create /a 600; link /a /b | link /a /gone
create /a 600; unlink /f | link /a /f
chmod /f 644 | link /f /new
append /h1 \"x\" | link /h2 /new
| unlink /f
| unlink /z
| unlink /l
| unlink /p
| unlink /m/top
| unlink /m/low
| unlink /m/sub/f
| unlink /o/new
| unlink /h1
| unlink /d/h3
append /f \"x\" | unlink /f
open /f @0; append /f \"x\" | unlink /f
open /f @0 | unlink /f
append /h1 \"x\" | unlink /h1
append /h1 \"x\" | unlink /h2
chmod /h1 600 | unlink /d/h3
append /h1 \"x\"; unlink /h1; unlink /h2 | unlink /d/h3
unlink /h1; unlink /h2 | unlink /d/h3
create /a 600 | unlink /a
create /a 600; link /a /b | unlink /b
open /h1 @0; unlink /h1; unlink /h2; unlink /d/h3 | chmod @0 600
open /f @0; unlink /f | chmod @0 600
open /f @0; unlink /f | truncate @0 0
| rmdir /d/e
create /d/e/x 600; unlink /d/e/x | rmdir /d/e
unlink /m/top; unlink /m/low; unlink /m/sub/f; rmdir /m/sub | rmdir /m
unlink /o/new | rmdir /o
mkdir /a 755 | rmdir /a
mkdir /a 755; create /a/x 600; unlink /a/x | rmdir /a
open /d/e @0 | rmdir /d/e
chmod /d/e 700; open /d/e @0 | rmdir /d/e
mkdir /a 755; rename /d/f /a/f; unlink /a/f | rmdir /a
| rename /f /new
| rename /f /d/f
| rename /f /gone
| rename /f /h1
| rename /h1 /new
| rename /h1 /f
| rename /h1 /h2
| rename /d/h3 /f
| rename /l /m/sub/l
| rename /p /gone
append /f \"x\" | rename /f /new
append /f \"x\" | rename /f /d/f
append /d/f \"x\" | rename /f /d/f
chmod /f 644 | rename /f /new
chmod /d/f 644 | rename /f /d/f
append /h1 \"x\" | rename /h1 /new
append /h1 \"x\" | rename /h2 /new
append /h1 \"x\" | rename /f /h1
append /h1 \"x\" | rename /f /d/h3
create /a 600 | rename /a /b
create /a 600 | rename /a /f
create /a 600 | rename /a /h1
create /a 600; append /h1 \"x\" | rename /a /h2
create /a 600; unlink /f | rename /a /f
create /a 600; create /b 600 | rename /a /b
| rename /m /new
| rename /m /d/new
| rename /m /gone
| rename /m /d/e
| rename /d/e /new
| rename /o /new
| rename /o /d/e
mkdir /a 755 | rename /a /b
mkdir /a 755 | rename /a /d/e
mkdir /a 755 | rename /a /m/sub/a
mkdir /a 755; unlink /f | rename /a /f
mkdir /a 755; create /a/x 600 | rename /a /d/e
unlink /d/f | rename /m /d/f
unlink /m/sub/f | rename /d/e /m/sub
chmod /d/e 700; create /d/e/x 600; unlink /d/e/x | rename /m /d/e
rename /m /a | rename /a /b
rename /m /a | rename /a /m
rename /m /d/a | rename /d/a /d/b
rename /m/sub /s | rename /s /m/s2
| rename /f /d/f exchange
| rename /f /h1 exchange
| rename /f /m exchange
| rename /m /d exchange
| rename /m/sub /d/e exchange
| rename /h1 /d/h3 exchange
append /h1 \"x\" | rename /h2 /f exchange
create /a 600 | rename /a /m exchange
mkdir /a 755 | rename /a /m exchange
rename /m /d exchange | rename /m /d exchange
| rename /f /new noreplace
| rename /m /new noreplace
| rename /f /new whiteout
| rename /f /gone whiteout
| rename /f /d/f whiteout
| rename /f /h1 whiteout
| rename /m /new whiteout
| rename /m /d/e whiteout
| rename /d/e /gone whiteout
append /d/f \"x\" | rename /f /d/f whiteout
create /a 600 | rename /a /b whiteout
open /f write @0 | write @0 3 \"XYZ\"
open /f write @0 | ftruncate @0 2
open /f write @0; unlink /f | ftruncate @0 2
| list /m
| stat /h1
| readlink /l
";

/// All of it: with and without metacopies, objects made in place, everything known to the kernel.
pub(crate) fn cases() -> impl Iterator<Item = Case> {
    let lines = OPERATIONS.lines().filter(|line| !line.is_empty());
    lines.enumerate().flat_map(|(number, line)| {
        let (before, operation) = line.split_once('|').unwrap();
        let mut ops: Vec<&str> = before.split(';').map(str::trim).filter(|op| !op.is_empty()).collect();
        ops.push(operation.trim());
        // `metacopy` means nothing to most.
        let flags: &[&str] = if number % 2 == 0 { &["", " keep metacopy"] } else { &[" keep", " metacopy"] };
        flags.iter().map(move |flags| format!("{LAYERS}ops{flags}\n  {}\n", ops.join("\n  ")).parse().unwrap()).collect::<Vec<Case>>()
    })
}
