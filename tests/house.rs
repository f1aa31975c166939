//! How the source is divided: which part may import which.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The files below a folder of `src`, or the one file, with their text.
fn sources(path: &str) -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    let mut left = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(path)];
    while let Some(path) = left.pop() {
        if path.is_dir() {
            left.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            let text = fs::read_to_string(&path).unwrap();
            files.push((path, text));
        }
    }
    assert!(!files.is_empty(), "no source in {path}");
    files
}

/// Production code: without comments and inline tests.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let is_code = |line: &&str| !line.trim_start().starts_with("//");
    text.lines().filter(is_code).collect::<Vec<_>>().join("\n")
}

/// No code of these files has one of the paths. Comments may.
#[track_caller]
fn do_not_name(files: &[&str], paths: &[&str]) {
    for (file, text) in files.iter().flat_map(|path| sources(path)) {
        for line in code(&text).lines() {
            for path in paths {
                assert!(!line.contains(path), "{} has {path}: {line}", file.display());
            }
        }
    }
}

/// A module, as the names on the way to it: `["server", "udp", "outlet"]`.
type Module = Vec<String>;

/// All paths that begin with `crate::` or `super::`, one for each name in braces.
fn paths(text: &str) -> BTreeSet<String> {
    let starts = ["crate::", "super::"].into_iter().flat_map(|start| text.match_indices(start));
    let mut paths = BTreeSet::new();
    for (at, _) in starts.filter(|(at, _)| !text[..*at].ends_with("::")) {
        let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
        let path: String = text[at..].chars().take_while(|&c| is_path(c)).collect();
        let names = text[at + path.len()..].strip_prefix('{').unwrap_or_default();
        let names = names.split('}').next().unwrap().split(',');
        paths.extend(names.map(|name| format!("{path}{}", name.trim())));
    }
    paths
}

/// Which module imports which.
fn imports() -> BTreeSet<(Module, Module)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files: BTreeMap<Module, String> = sources("")
        .into_iter()
        .map(|(path, text)| {
            let path = path.strip_prefix(&root).unwrap().with_extension("");
            let names = path.iter().map(|name| name.to_str().unwrap().to_string());
            (names.filter(|name| name != "mod" && name != "lib").collect(), code(&text))
        })
        .collect();
    let mut arrows = BTreeSet::new();
    for (module, text) in &files {
        for path in paths(text) {
            let mut to = module.clone();
            for name in path.split("::") {
                match name {
                    "super" => drop(to.pop()),
                    "crate" => to.clear(),
                    name => to.push(name.to_string()),
                }
            }
            while !files.contains_key(&to) {
                to.pop();
            }
            arrows.insert((module.clone(), to));
        }
    }
    assert!(arrows.len() > 100, "{arrows:?}");
    arrows
}

/// No module that is in one of the parts imports one that is in one of the others.
#[track_caller]
fn do_not_import(from: &[&str], to: &[&str]) {
    let is_in = |module: &Module, parts: &[&str]| {
        let path = module.join("/");
        parts.iter().any(|part| path == *part || path.starts_with(&format!("{part}/")))
    };
    for (module, imported) in imports() {
        let forbidden = is_in(&module, from) && is_in(&imported, to);
        assert!(!forbidden, "{} imports {}", module.join("/"), imported.join("/"));
    }
}

const EVENT_LOOP: [&str; 5] =
    ["server/event_loop", "server/connections", "server/connection", "server/ready", "busy_poll"];
const BLOCKING: [&str; 3] = ["server/blocking", "server/threaded", "server/iterative"];

#[test]
fn the_designs_are_siblings() {
    do_not_import(&EVENT_LOOP, &BLOCKING);
    do_not_import(&BLOCKING, &EVENT_LOOP);
    do_not_import(&["server/threaded"], &["server/iterative"]);
    do_not_import(&["server/iterative"], &["server/threaded"]);
    do_not_import(&["server/blocking"], &["server/iterative", "server/threaded"]);
    // What is below all of them.
    let designs = [&EVENT_LOOP[..], &BLOCKING].concat();
    let modules: BTreeSet<String> = imports().iter().map(|(from, _)| from.join("/")).collect();
    let others = modules.iter().map(String::as_str).filter(|module| {
        let above = *module == "server" || module.starts_with("server/simulation");
        module.starts_with("server")
            && !above
            && !designs.contains(module)
            && !module.ends_with("/tests")
    });
    do_not_import(&others.collect::<Vec<_>>(), &designs);
}

#[test]
fn nothing_imports_from_the_floors_above() {
    let library =
        ["server", "protocol", "sys", "config", "impairments", "error", "stats", "address"];
    do_not_import(&library, &["client", "cli"]);
    do_not_import(&library[1..], &["server"]);
    do_not_import(&["protocol", "sys", "error"], &["config"]);
    do_not_import(&["sys", "error"], &["protocol"]);
    do_not_import(&["client"], &["server", "cli"]);
    do_not_name(&["server", "protocol", "sys", "client"], &["clap::", "env_logger::"]);
}

/// Siblings, whether files or folders, of which one imports another, and that one the first, by whatever detour.
#[test]
fn no_imports_go_in_a_circle() {
    let mut arrows = BTreeMap::<Module, BTreeSet<Module>>::new();
    for (from, to) in imports() {
        let shared = from.iter().zip(&to).take_while(|(one, other)| one == other).count();
        // A folder has what its files share, and they name it.
        if let (Some(_), Some(_)) = (from.get(shared), to.get(shared)) {
            let from = from[..=shared].to_vec();
            arrows.entry(from).or_default().insert(to[..=shared].to_vec());
        }
    }
    for start in arrows.keys() {
        let (mut reached, mut left) = (BTreeSet::new(), vec![start]);
        while let Some(module) = left.pop() {
            let imported = arrows.get(module).into_iter().flatten();
            left.extend(imported.filter(|module| reached.insert(*module)));
        }
        assert!(!reached.contains(start), "{} imports itself: {reached:?}", start.join("/"));
    }
}

/// What differs between systems is decided in one place.
#[test]
fn only_sys_names_an_operating_system() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let names = ["nix::", "std::os", "libc::", "/proc"];
    for (path, text) in sources("") {
        let path = path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
        let elsewhere = ["sys/", "client/", "cli/", "server/simulation/"];
        if elsewhere.iter().all(|part| !path.starts_with(part)) && !path.ends_with("tests.rs") {
            for line in code(&text).lines() {
                assert!(names.iter().all(|name| !line.contains(name)), "{path}: {line}");
            }
        }
    }
}

/// Which systems there are is asked in one place, but for the module that one of them has, and for those that are none.
#[test]
fn only_sys_asks_for_the_operating_system() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let states = r#"#[cfg_attr(not(target_os = "linux"), path = "no_states.rs")]"#;
    let none =
        r#"#[cfg(not(any(target_os = "linux", target_os = "macos", target_os = "freebsd")))]"#;
    let exceptions = [("lib.rs", none), ("client/mod.rs", states), ("cli/mod.rs", states)];
    let words =
        ["target_os", "target_family", "target_vendor", "target_env", "cfg(unix", "cfg(windows"];
    let mut found = Vec::new();
    for (path, text) in sources("").iter().filter(|(path, _)| !path.starts_with(root.join("sys"))) {
        let path = path.strip_prefix(&root).unwrap().to_str().unwrap();
        let asks = |line: &&str| words.iter().any(|word| line.contains(word));
        found.extend(
            text.lines().filter(asks).map(|line| (path.to_owned(), line.trim().to_owned())),
        );
    }
    found.sort();
    let mut expected = exceptions.map(|(path, line)| (path.to_owned(), line.to_owned()));
    expected.sort();
    assert_eq!(found, expected);
}

/// A program that embeds the library has fields, not flags. In comments too, since they are its documentation.
#[test]
fn only_the_command_line_speaks_of_flags() {
    let library =
        sources("").into_iter().filter(|(path, _)| !path.to_string_lossy().contains("/cli/"));
    for (path, text) in library {
        for line in text.lines() {
            let mut words = line.split("--").skip(1);
            let flag = words.any(|rest| rest.starts_with(|next: char| next.is_ascii_lowercase()));
            assert!(!flag, "{} speaks of a flag: {line}", path.display());
        }
    }
}
