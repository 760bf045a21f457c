use proptest::prelude::*;

use super::table::TABLE;
use super::*;

fn parse(options: &str) -> Result<Params, ParamError> {
    options.parse()
}

fn refusal(options: &str) -> String {
    parse(options).expect_err(options).to_string()
}

fn paths(list: &[&str]) -> Vec<PathBuf> {
    list.iter().map(PathBuf::from).collect()
}

#[test]
fn real_clients_option_strings_are_taken() {
    // podman, as recorded: trailing and doubled commas.
    let params = parse("lowerdir=G/l/A:G/l/B,upperdir=G/1/diff,workdir=G/1/work,,volatile,").unwrap();
    assert_eq!(params.lowers, paths(&["G/l/A", "G/l/B"]));
    assert_eq!(params.writable, Some(Writable { upper: "G/1/diff".into(), work: "G/1/work".into() }));
    assert!(params.volatile && !params.is_read_only() && params.dev && params.suid && params.exec);
    assert!(parse("lowerdir=/a,upperdir=/u,workdir=/w,fsync=0,volatile").unwrap().volatile);
    let params =
        parse("lowerdir=/a,upperdir=/u,workdir=/w,,volatile,uidmapping=:0:100000:65536,gidmapping=:0:100000:65536:65536:5:1").unwrap();
    let range = |disk, shown, count| IdRange { disk, shown, count };
    assert_eq!(params.owners.uids, IdMap::ranges(vec![range(0, 100_000, 65536)]).unwrap());
    assert_eq!(params.owners.gids, IdMap::ranges(vec![range(0, 100_000, 65536), range(65536, 5, 1)]).unwrap());
    // Of one id alone.
    let params = parse("lowerdir=/a,upperdir=/u,workdir=/w,,volatile,squash_to_uid=1000,squash_to_gid=0").unwrap();
    assert_eq!(params.owners, OwnerMap { uids: IdMap::squashed(1000), gids: IdMap::squashed(0) });
    assert_eq!(parse("lowerdir=/a,squash_to_root").unwrap().owners, OwnerMap { uids: IdMap::squashed(0), gids: IdMap::squashed(0) });
    // Of a volume `:O`, and with SELinux.
    assert_eq!(parse("lowerdir=/a,upperdir=/u,workdir=/w,private").unwrap().propagation, Some(Propagation::Private));
    let params = parse(r#"lowerdir=/a,context="system_u:object_r:container_file_t:s0:c1,c2""#).unwrap();
    assert_eq!(params.contexts, [("context", OsString::from("system_u:object_r:container_file_t:s0:c1,c2"))]);
    // mount(8) for an entry in fstab.
    let params = parse("rw,noexec,nosuid,nodev,noatime,lowerdir=/a,fsname=test,x-systemd.automount,_netdev").unwrap();
    assert!(params.is_read_only() && !params.read_only && !params.exec && !params.suid && !params.dev);
    assert_eq!((params.atime, params.fsname.as_deref()), (Atime::Never, Some(OsStr::new("test"))));
    // containerd through mount.fuse3.
    parse("lowerdir=/a:/b,upperdir=/u,workdir=/w,dev,suid").unwrap();
}

#[test]
fn escapes_are_the_kernels() {
    let params = parse(r"lowerdir=/a\:b:/c\,d:/e\\:/\f,upperdir=/u\,\:\\,workdir=/w:x").unwrap();
    assert_eq!(params.lowers, paths(&["/a:b", "/c,d", r"/e\", "/f"]));
    assert_eq!(params.writable, Some(Writable { upper: r"/u,:\".into(), work: "/w:x".into() }));
    assert_eq!(parse(r"lowerdir+=/a:b,lowerdir+=/c\,d").unwrap().lowers, paths(&["/a:b", "/c,d"]));
}

#[test]
fn a_file_of_options_stands_where_it_is_named() {
    let file = b"lowerdir+=/a\\\nb,ro\n\n# lowerdir+=/c\nlowerdir+=/d:e\\,f\nrw".to_vec();
    let read = |path: &Path| if path == Path::new("/x,y") { Ok(file.clone()) } else { Err(std::io::ErrorKind::NotFound.into()) };
    let params = Params::parse_with(["lowerdir+=/first,@/x\\,y,lowerdir+=/last"], read).unwrap();
    assert_eq!((params.lowers, params.read_only), (paths(&["/first", "/a\nb", "/d:e,f", "/last"]), false));
    let error = Params::parse_with(["@/none"], read).unwrap_err().to_string();
    assert_eq!(error, "option @/none: entity not found; correct the path, which must be that of a readable file");
}

#[test]
fn data_only_layers_are_the_kernels() {
    let params = parse(r"lowerdir=/a:/b::/c\:d::/e,metacopy=on").unwrap();
    assert_eq!((params.lowers, params.data, params.metacopy), (paths(&["/a", "/b"]), paths(&["/c:d", "/e"]), true));
    let params = parse("lowerdir+=/a,lowerdir+=/b,datadir+=/c:d,datadir+=/e,metacopy=off").unwrap();
    assert_eq!((params.lowers, params.data, params.metacopy), (paths(&["/a", "/b"]), paths(&["/c:d", "/e"]), false));
}

#[test]
fn the_last_of_a_pair_counts() {
    for (options, expected) in [("ro,rw", false), ("rw,ro", true), ("ro,defaults", false)] {
        assert_eq!(parse(&format!("lowerdir=/a,{options}")).unwrap().read_only, expected, "{options}");
    }
    let params = parse("lowerdir=/a,user,exec").unwrap();
    assert_eq!((params.exec, params.suid, params.dev), (true, false, false));
    let params = Params::parse(["lowerdir=/a,nodev", "dev,fsync=0", "fsync=1"]).unwrap();
    assert!(params.dev && !params.no_sync);
    assert!(parse("lowerdir=/a,fsync=1,sync=0").unwrap().no_sync);
}

#[test]
fn what_plyfs_does_anyway_is_accepted_and_its_opposite_refused_by_name() {
    for (same, other) in [
        ("index=on", "index=off"),
        ("nfs_export=off", "nfs_export=on"),
        ("xino=auto", "xino=1"),
        ("redirect_dir=on", "redirect_dir=1"),
        ("kernel_compat=off", "kernel_compat=1"),
        ("uuid=auto", "uuid=off"),
        ("verity=off", "verity=require"),
        ("threaded=1", "threaded=0"),
        ("noxattrs=0", "noxattrs=1"),
        ("xattr_permissions=0", "xattr_permissions=1"),
        ("whiteout=auto", "whiteout=other"),
        ("uuid=null", "uuid=on"),
        ("subtype=plyfs", "subtype=other"),
        ("override_creds", "nooverride_creds"),
        ("async", "sync"),
        ("allow_other", "allow_root"),
    ] {
        assert_eq!(parse(&format!("lowerdir=/a,{same}")), parse("lowerdir=/a"), "{same}");
        let text = refusal(&format!("lowerdir=/a,{other}"));
        assert!(text.starts_with(&format!("option {other}: ")) && text.contains("; "), "{text}");
    }
}

#[test]
fn what_is_not_supported_is_refused_by_name_with_a_remedy() {
    for option in ["uuid=on", "plugins=/p", "remount", "auto_unmount", "ac_attr_timeout=1", "max_read=4096", "nonsense", "nonsense=1"] {
        let text = refusal(&format!("lowerdir=/a,{option},ro"));
        assert!(text.starts_with(&format!("option {option}: ")) && text.contains("; "), "{text}");
    }
}

#[test]
fn contradictions_name_the_option_and_the_remedy() {
    for (options, start) in [
        ("", "option lowerdir: not given; "),
        ("rw", "option lowerdir: not given; "),
        ("lowerdir=", "option lowerdir: it is empty; "),
        ("lowerdir", "option lowerdir: it needs a value; "),
        ("lowerdir=/a:", "option lowerdir: a colon stands at an end; "),
        ("lowerdir=:/a", "option lowerdir: a colon stands at an end; "),
        ("lowerdir=/a:::/b", "option lowerdir: three colons follow each other; "),
        ("lowerdir=/a::/b:/c", "option lowerdir: a directory that is shown stands after a data-only one; "),
        ("lowerdir=::/b", "option lowerdir: a colon stands at an end; "),
        ("lowerdir=/a::/a", "option lowerdir: /a is named twice; "),
        ("lowerdir+=/a,datadir+=/a", "option datadir+: /a is named twice; "),
        ("lowerdir=/a,datadir+=/b", "option datadir+: it cannot be combined with lowerdir; "),
        ("lowerdir+=/a,datadir+=/b,lowerdir+=/c", "option lowerdir+: it stands after datadir+; "),
        ("datadir+=/b", "option lowerdir: not given; "),
        ("lowerdir=/a::/b,upperdir=/b,workdir=/w", "option upperdir: /b is named twice; "),
        ("lowerdir=/a,metacopy=yes", "option metacopy=yes: the value must be on or off; "),
        ("lowerdir=/a,metacopy=on,lower=live", "option metacopy: with lower=live "),
        ("lowerdir=/a,lowerdir=/b", "option lowerdir: given more than once; "),
        ("lowerdir=/a,lowerdir+=/b", "option lowerdir+: it cannot be combined with lowerdir; "),
        ("lowerdir+=/a,lowerdir=/b", "option lowerdir: given more than once; "),
        ("lowerdir=/a,upperdir=/u", "option upperdir: given without workdir; "),
        ("lowerdir=/a,workdir=/w", "option workdir: given without upperdir; "),
        ("lowerdir=/a,upperdir=/u,upperdir=/v,workdir=/w", "option upperdir: given more than once; "),
        ("lowerdir=/a,upperdir=,workdir=/w", "option upperdir: it needs a value; "),
        ("lowerdir=/a:/b:/a", "option lowerdir: /a is named twice; "),
        ("lowerdir=/a:/b,upperdir=/b,workdir=/w", "option upperdir: /b is named twice; "),
        ("lowerdir=/a,upperdir=/u,workdir=/u", "option workdir: /u is named twice; "),
        ("lowerdir=/a,ro=1", "option ro=1: it takes no value; "),
        ("lowerdir=/a,fsync=2", "option fsync=2: the value must be 0 or 1; "),
        ("lowerdir=/a,metacopy=on,userxattr", "option metacopy: not with userxattr, "),
        ("lowerdir=/a,xattr_permissions=2,suid", "option xattr_permissions: not with dev or suid: "),
        ("lowerdir=/a,nodev,dev,xattr_permissions=2,nosuid", "option xattr_permissions: not with dev or suid: "),
        ("lowerdir=/a,volatile,fsync=1", "option volatile: fsync=1 asks for the opposite; "),
        ("lowerdir=/a,uidmapping=0:1", "option uidmapping=0:1: the value must be DISK:SHOWN:COUNT, "),
        ("lowerdir=/a,uidmapping=", "option uidmapping=: the value must be DISK:SHOWN:COUNT, "),
        ("lowerdir=/a,uidmapping=0:-1:1", "option uidmapping=0:-1:1: the value must be DISK:SHOWN:COUNT, "),
        ("lowerdir=/a,gidmapping=0:1:0", "option gidmapping=0:1:0: the value must be DISK:SHOWN:COUNT, "),
        ("lowerdir=/a,uidmapping=0:1:1,uidmapping=0:1:1", "option uidmapping: given more than once; "),
        ("lowerdir=/a,uidmapping=0:1:1,squash_to_uid=1", "option squash_to_uid: owners are either mapped or squashed "),
        ("lowerdir=/a,squash_to_root,squash_to_uid=1", "option squash_to_root: not with other options "),
        ("lowerdir=/a,squash_to_uid=4294967295", "option squash_to_uid=4294967295: the value must be an id, "),
        ("lowerdir=/a,metacopy=on,redirect_dir=off", "option metacopy: only with redirect_dir=on: "),
        ("lowerdir=/a,redirect_dir=nofollow,metacopy=on", "option metacopy: only with redirect_dir=on: "),
        ("lowerdir=/a,userxattr,redirect_dir=on", "option redirect_dir: with userxattr no redirects are written, "),
        ("lowerdir=/a,timeout=-1", "option timeout=-1: the value must be seconds, "),
        ("lowerdir=/a,timeout=nan", "option timeout=nan: the value must be seconds, "),
        ("lowerdir=/a,timeout=inf", "option timeout=inf: the value must be seconds, "),
        ("lowerdir=/a,timeout=", "option timeout=: the value must be seconds, "),
        ("lowerdir=/a,lower=live,attr_timeout=2", "option timeout: with lower=live "),
        ("lowerdir=/a,context=", "option context: it needs a value; "),
        ("lowerdir=/a,context=a,context=b", "option context: given more than once; "),
        ("lowerdir=/a,whiteout=no", "option whiteout=no: the value must be auto, overlay or aufs; "),
        ("lowerdir=/a,lower=dead", "option lower=dead: the value must be live; "),
        ("lowerdir=/a,redirect_dir", "option redirect_dir: it needs a value; "),
        ("lowerdir=/a,fsname=", "option fsname: it needs a value; "),
    ] {
        let text = refusal(options);
        assert!(text.starts_with(start) && !text.contains('\n'), "{options}: {text}");
    }
}

/// docs/OPTIONS.md has a row for each option and no others, with whose it is, and "refused" where it is.
#[test]
fn the_table_of_options_is_the_parsers() {
    let text = include_str!("../../../../docs/OPTIONS.md");
    let rows: Vec<Vec<&str>> = text
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
        .collect();
    assert_eq!(rows.len(), TABLE.len());
    for (row, (name, whose, rule)) in rows.iter().zip(TABLE) {
        let [option, from, what] = row[..] else { panic!("{row:?}") };
        assert_eq!((option, from), (&*format!("`{name}`"), whose.name()), "in the order of the parser's table");
        assert_eq!(what.starts_with("refused"), matches!(rule, Rule::Refused(_)), "{name}: {what}");
        if let Rule::Only(values, _) = rule {
            assert!(values.iter().all(|value| what.contains(&format!("`{value}`"))) && what.contains("refused"), "{name}: {what}");
        }
        // Nothing else is said of an option that takes no value.
        if let Rule::Nothing | Rule::Hint = rule {
            assert!(what.starts_with("accepted"), "{name}: {what}");
        }
    }
    let mut names: Vec<_> = TABLE.iter().map(|(name, ..)| name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), TABLE.len(), "one row an option");
}

fn path() -> impl Strategy<Value = PathBuf> {
    prop::collection::vec(prop::sample::select(b"/a:,\\\" \n\xff=".to_vec()), 1..8).prop_map(|bytes| OsString::from_vec(bytes).into())
}

fn owners() -> impl Strategy<Value = OwnerMap> {
    let ranges = || {
        let map = prop::collection::vec((0..4_u32, 1..1000_u32), 1..4).prop_map(|list| {
            let range = |(index, (shift, count)): (usize, (u32, u32))| {
                let first = 1000 * u32::try_from(index).unwrap();
                IdRange { disk: first, shown: first + 5000 * shift, count }
            };
            IdMap::ranges(list.into_iter().enumerate().map(range).collect()).unwrap()
        });
        prop_oneof![Just(IdMap::default()), (0..u32::MAX).prop_map(IdMap::squashed), map]
    };
    (ranges(), ranges()).prop_map(|(uids, gids)| OwnerMap { uids, gids })
}

prop_compose! {
    fn any_params()(
        mut all in prop::collection::btree_set(path(), 3..7).prop_map(|set| set.into_iter().collect::<Vec<_>>()).prop_shuffle(),
        writable in any::<bool>(),
        flags in any::<[bool; 17]>(),
        redirects in prop::sample::select(vec![Redirects::Written, Redirects::Followed, Redirects::Refused]),
        timeouts in any::<[Option<u32>; 3]>(),
        whiteouts in prop::sample::select(vec![Whiteouts::Auto, Whiteouts::Overlay, Whiteouts::Aufs]),
        owners in owners(),
        propagation in prop::option::of(prop::sample::select(vec![Propagation::Private, Propagation::Slave, Propagation::Shared, Propagation::Unbindable])),
        contexts in prop::option::of(path()),
        data in any::<prop::sample::Index>(),
        atime in prop::sample::select(vec![Atime::Relative, Atime::Never, Atime::Strict]),
        no_dir_atime in any::<bool>(),
        fsname in prop::option::of(path()),
    ) -> Params {
        let pair = all.split_off(all.len() - 2);
        let data = all.split_off(data.index(all.len()) + 1);
        let [live_lowers, metacopy, volatile, read_only, dev, suid, exec, debug, lenient, user_xattr, no_sync, no_sym_follow, overrides, plain_numbers, kernel_compat, no_acls,
            static_nlink] = flags;
        let timeout = |millis: Option<u32>| millis.map(|millis| Duration::from_millis(millis.into()).min(Duration::from_secs(if live_lowers { 1 } else { u64::MAX })));
        let override_stat = overrides;
        Params {
            lowers: all,
            data,
            metacopy: metacopy && !live_lowers && !user_xattr && redirects == Redirects::Written,
            writable: writable.then(|| Writable { upper: pair[0].clone(), work: pair[1].clone() }),
            live_lowers, volatile, no_sync, read_only, exec, atime, no_dir_atime, no_sym_follow, debug, lenient, user_xattr, whiteouts,
            owners, propagation, override_stat, redirects, plain_numbers, kernel_compat, no_acls, static_nlink,
            timeouts: Timeouts { entry: timeout(timeouts[0]), negative: timeout(timeouts[1]), attr: timeout(timeouts[2]) },
            dev: dev && !override_stat,
            suid: suid && !override_stat,
            contexts: contexts.into_iter().map(|value| ("context", value.into_os_string())).collect(),
            fsname: fsname.map(PathBuf::into_os_string),
        }
    }
}

proptest! {
    #[test]
    fn text_round_trips(params in any_params()) {
        prop_assert_eq!(Params::parse([params.to_os_string()]), Ok(params.clone()));
        if let Some(text) = params.to_os_string().to_str() {
            prop_assert_eq!(params.to_string(), text);
        }
    }

    #[test]
    fn any_bytes_are_parsed_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        if let Ok(params) = Params::parse([OsString::from_vec(bytes)]) {
            prop_assert_eq!(Params::parse([params.to_os_string()]), Ok(params));
        }
    }

    #[test]
    fn any_options_are_parsed_or_refused(text in "(lowerdir=|,|:|\\\\|/a|/b|upperdir=|workdir=|ro|=|\"|context=|uidmapping=|squash_to_gid=|1){0,14}") {
        if let Ok(params) = parse(&text) {
            prop_assert_eq!(Params::parse([params.to_os_string()]), Ok(params));
        }
    }
}
