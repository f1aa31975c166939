//! What the scripts are, and what a TAB gives in each shell, for every flag that takes a value.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;

use clap_complete::Generator;
use nix::pty::openpty;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use snapbox::{Data, assert_data_eq};

use super::*;

/// After a change that is meant, run with `SNAPSHOTS=overwrite` and look at the difference.
#[test]
fn the_files_in_completions_are_of_today() {
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        let script = script(shell);
        let (root, file) = (env!("CARGO_MANIFEST_DIR"), shell.file_name("evecho"));
        let path = format!("{root}/completions/{file}");
        assert_data_eq!(script, Data::read_from(path.as_ref(), None).raw());
    }
}

#[test]
fn no_shell_learns_what_the_help_hides() {
    for shell in [Shell::Bash, Shell::Elvish, Shell::Fish, Shell::PowerShell, Shell::Zsh] {
        let script = script(shell);
        let words = || script.split(|c: char| !c.is_alphanumeric() && c != '_' && c != '-');
        assert!(words().any(|word| word == "ping"), "{shell}");
        for hidden in ["serve", "evecho__serve", "__supervise", "supervise"] {
            assert!(words().all(|word| word != hidden), "{shell}: {hidden}");
        }
    }
}

// ---- what a TAB gives

/// What is offered at the end of a line.
#[derive(Debug, PartialEq)]
enum Expected {
    /// These and nothing else.
    Exactly(BTreeSet<String>),
    /// This, and whatever else the machine has.
    Among(&'static str),
}

fn exactly<S: Into<String>>(words: impl IntoIterator<Item = S>) -> Expected {
    Expected::Exactly(words.into_iter().map(Into::into).collect())
}

/// What is typed behind `start`, which a value follows, and what is offered for it in [`Folder`].
fn typed(start: &str, arg: &Arg) -> (String, Expected) {
    let (text, expected) = match Offer::of(arg) {
        Offer::Words(words) => ("", exactly(words)),
        Offer::Files => ("a", exactly(["a file"])),
        Offer::Directories => ("", exactly(["folder"])),
        Offer::Commands => ("evecho-h", Expected::Among("evecho-here")),
        Offer::Hosts => ("evecho-h", Expected::Among("evecho-host")),
        Offer::Nothing => ("a", exactly([""; 0])),
    };
    (format!("{start}{text}"), expected)
}

/// Lines that end where a TAB is pressed: at the value of every flag, and at the first argument without one.
fn lines(shell: Shell) -> BTreeMap<String, Expected> {
    let mut evecho = described();
    evecho.build();
    let mut lines = BTreeMap::new();
    for command in [&evecho].into_iter().chain(evecho.get_subcommands()) {
        let start = match command.get_name() {
            "evecho" => "evecho ".to_owned(),
            name => format!("evecho {name} "),
        };
        for arg in command.get_opts() {
            let long = arg.get_long().unwrap();
            lines.extend([typed(&format!("{start}--{long}="), arg)]);
            if arg.is_require_equals_set() {
                continue;
            }
            lines.extend([typed(&format!("{start}--{long} "), arg)]);
            lines.extend(arg.get_short().map(|short| typed(&format!("{start}-{short} "), arg)));
        }
        lines.extend(command.get_positionals().take(1).map(|arg| typed(&start, arg)));
    }
    // Parts of words, behind other words.
    let designs = ["event-loop", "threaded", "iterative"];
    lines.extend([
        ("evecho pin".to_owned(), exactly(["ping"])),
        ("evecho --frami".to_owned(), exactly(["--framing"])),
        ("evecho --service=u".to_owned(), exactly(["upper"])),
        ("evecho --port 7 --bind ::1 --service w".to_owned(), exactly(["who"])),
        ("evecho ping --framing le".to_owned(), exactly(["length"])),
        ("evecho ping localhost --framing le".to_owned(), exactly(["length"])),
        ("evecho ping --framing=le".to_owned(), exactly(["length"])),
        ("evecho states open half".to_owned(), exactly(["half-close"])),
        ("evecho states --timeout 5s half".to_owned(), exactly(["half-close"])),
        ("evecho merge x.json f".to_owned(), exactly(["folder"])),
        ("evecho merge --js".to_owned(), exactly(["--json"])),
        ("evecho compare --design threaded --design ".to_owned(), exactly(designs)),
        ("evecho help sta".to_owned(), exactly(["states"])),
    ]);
    if shell == Shell::Bash {
        // What the others leave out: the end of a list, and a port.
        lines.extend([
            ("evecho check --only tcp-sizes,udp-em".to_owned(), exactly(["tcp-sizes,udp-empty"])),
            ("evecho compare --design=iterative,t".to_owned(), exactly(["iterative,threaded"])),
            ("evecho ping evecho-host:a".to_owned(), exactly([""; 0])),
            ("evecho send evecho-host a".to_owned(), exactly([""; 0])),
            ("evecho send --framing lines evecho-h".to_owned(), exactly(["evecho-host"])),
            ("evecho send --timeout=5 evecho-h".to_owned(), exactly(["evecho-host"])),
        ]);
    }
    lines
}

/// A directory with a file and a directory, the script of a shell, the lines, a command and a host.
struct Folder(PathBuf, Shell);

impl Folder {
    fn new(shell: Shell, files: &[(&str, &str)]) -> Self {
        let name = format!("evecho-completions-{shell}-{}", std::process::id());
        let folder = Folder(std::env::temp_dir().join(name), shell);
        fs::create_dir_all(folder.0.join("here/folder")).unwrap();
        fs::create_dir(folder.0.join("bin")).unwrap();
        fs::write(folder.0.join("here/a file"), "").unwrap();
        let command = folder.0.join("bin/evecho-here");
        fs::write(&command, "").unwrap();
        fs::set_permissions(&command, PermissionsExt::from_mode(0o755)).unwrap();
        fs::write(folder.0.join(shell.file_name("evecho")), script(shell)).unwrap();
        let lines: Vec<String> = lines(shell).into_keys().collect();
        fs::write(folder.0.join("lines"), lines.join("\n") + "\n").unwrap();
        fs::create_dir(folder.0.join(".ssh")).unwrap();
        fs::write(folder.0.join(".ssh/known_hosts"), "evecho-host ssh-rsa AAAA\n").unwrap();
        fs::write(folder.0.join("hosts"), "192.0.2.1 evecho-host\n").unwrap();
        for (name, text) in files {
            fs::write(folder.0.join(name), text).unwrap();
        }
        folder
    }

    /// This shell in this directory; nothing where it is not installed.
    fn command(&self, program: &str, args: &[&str]) -> Option<Command> {
        let version = Command::new(program).arg("--version").output();
        if version.is_err_and(|error| error.kind() == ErrorKind::NotFound) {
            println!("skipped: {program} is not installed");
            return None;
        }
        let path = std::env::var("PATH").unwrap_or_default();
        // One that waits for ever is ended.
        let mut command = Command::new("timeout");
        command
            .args(["--foreground", "300", program])
            .args(args)
            .current_dir(self.0.join("here"))
            .env_clear();
        command.env("PATH", format!("{}:{path}", self.0.join("bin").display()));
        command.env("HOME", &self.0).env("FOLDER", &self.0).env("ZDOTDIR", &self.0);
        command.env("TERM", "dumb").env("INPUTRC", "/dev/null").env("LC_ALL", "C.UTF-8");
        Some(command)
    }

    /// Compares what is in the file `offered` with what is expected: a line behind `=`, then what is offered
    /// for it.
    #[track_caller]
    fn check(&self) {
        let text = fs::read_to_string(self.0.join("offered")).unwrap();
        let mut offered: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
        for block in text.split("\n= ").map(|block| block.trim_start_matches("= ")) {
            let (line, words) = block.split_once('\n').unwrap_or((block, ""));
            // Some shells repeat what stands before it in the same word.
            let flag = line.rsplit(' ').next().and_then(|word| word.split_once('='));
            let flag = flag.map_or(String::new(), |(flag, _)| format!("{flag}="));
            let words = words.lines().map(|word| {
                let word = word.strip_prefix(&flag).unwrap_or(word);
                word.trim_end_matches('/').replace("\\ ", " ")
            });
            offered.insert(line, words.filter(|word| !word.is_empty()).collect());
        }
        let mut wrong = Vec::new();
        for (line, expected) in &lines(self.1) {
            let words = offered.get(&**line);
            let right = words.is_some_and(|words| match expected {
                Expected::Exactly(expected) => words == expected,
                Expected::Among(word) => words.contains(*word),
            });
            if !right {
                let few: Option<Vec<_>> = words.map(|words| words.iter().take(20).collect());
                wrong.push(format!("{line:?}: {few:?} instead of {expected:?}"));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs a shell on a terminal, types this, and waits for its end. Returns what it showed.
fn type_into(mut shell: Command, keys: &[u8]) -> String {
    let pty = openpty(None, None).unwrap();
    // From the start, as shells make it: no key means anything to the terminal itself.
    let mut mode = tcgetattr(&pty.slave).unwrap();
    cfmakeraw(&mut mode);
    tcsetattr(&pty.slave, SetArg::TCSANOW, &mode).unwrap();
    let slave = || Stdio::from(pty.slave.try_clone().unwrap());
    let mut child = shell.stdin(slave()).stdout(slave()).stderr(slave()).spawn().unwrap();
    drop(shell);
    drop(pty.slave);
    let mut master = File::from(pty.master);
    let (mut keyboard, keys) = (master.try_clone().unwrap(), keys.to_vec());
    // It may end without having read them all.
    let typing = thread::spawn(move || _ = keyboard.write_all(&keys));
    let mut shown = Vec::new();
    // The end is an error: no terminal is open any more.
    let _ = master.read_to_end(&mut shown);
    child.wait().unwrap();
    drop(master);
    typing.join().unwrap();
    String::from_utf8_lossy(&shown).into_owned()
}

const BASHRC: &str = r#"
source "$FOLDER/evecho.bash"
HOSTFILE=$FOLDER/hosts
_record() {
    _evecho "$@"
    echo "= $COMP_LINE" >>"$FOLDER/offered"
    printf '%s\n' "${COMPREPLY[@]}" >>"$FOLDER/offered"
    complete=$COMP_LINE
}
complete -F _record evecho
# What bash has added by itself.
_added() {
    local word=${READLINE_LINE#"${complete% *} "}
    [[ $READLINE_LINE == "$complete" || -n ${COMPREPLY[*]} ]] || echo "${word% }" >>"$FOLDER/offered"
}
bind 'set show-all-if-ambiguous off'
bind -x '"\C-xr": _added'
bind '"\C-xk": kill-whole-line'
"#;

#[test]
fn a_tab_in_bash() {
    let folder = Folder::new(Shell::Bash, &[("bashrc", BASHRC)]);
    let rc = folder.0.join("bashrc").display().to_string();
    let Some(bash) = folder.command("bash", &["--noprofile", "--rcfile", &rc, "-i"]) else {
        return;
    };
    let keys: String =
        lines(Shell::Bash).keys().map(|line| format!("{line}\t\u{18}r\u{18}k")).collect();
    let shown = type_into(bash, format!("{keys}exit\r").as_bytes());
    println!("{shown}");
    folder.check();
}

const FISH: &str = r#"
source $FOLDER/evecho.fish
for line in (cat $FOLDER/lines)
    echo "= $line"
    complete --do-complete $line | cut -f1
end >$FOLDER/offered
"#;

#[test]
fn a_tab_in_fish() {
    let folder = Folder::new(Shell::Fish, &[("rc", FISH)]);
    let Some(mut fish) = folder.command("fish", &["--no-config", "-c", FISH]) else { return };
    let output = fish.output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    folder.check();
}

const ZSHRC: &str = r#"
fpath=($FOLDER $fpath)
autoload -Uz compinit
compinit -u -D
compadd() {
    if [[ ${@[1,(i)(-|--)]} == *-(O|A|D)\ * ]]; then
        builtin compadd "$@"
        return
    fi
    local -a hits
    builtin compadd -A hits "$@"
    print -rl -- $hits >>$FOLDER/offered
    builtin compadd "$@"
}
zle-line-init() {
    local line
    while IFS= read -r line; do
        print -r -- "= $line" >>$FOLDER/offered
        BUFFER=$line CURSOR=$#line
        zle list-choices 2>>$FOLDER/offered
    done <$FOLDER/lines
    exit
}
zle -N zle-line-init
"#;

#[test]
fn a_tab_in_zsh() {
    let folder = Folder::new(Shell::Zsh, &[(".zshrc", ZSHRC)]);
    let Some(zsh) = folder.command("zsh", &["-d", "-i"]) else { return };
    let shown = type_into(zsh, b"");
    println!("{shown}");
    assert!(!shown.contains("not found"), "{shown}");
    folder.check();
}
