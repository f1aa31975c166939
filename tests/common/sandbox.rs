//! Commands in a sandbox: a filter (seccomp(2)) refuses some of their calls, by one of their arguments, or there is no
//! `/proc`.

#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::process::Command;
use std::sync::OnceLock;

use nix::errno::Errno;

/// Becomes a program with a filter. Its rules are triples: the name of a call, which argument has which value
/// ("0=10") or "any", and the error that it returns.
const FILTER: &str = r#"
import ctypes, os, struct, sys
at = ["x86_64", "aarch64"].index(os.uname().machine)
numbers = {"socket": (41, 198), "bind": (49, 200), "listen": (50, 201), "accept4": (288, 242),
    "epoll_create1": (291, 20), "epoll_ctl": (233, 21), "setsockopt": (54, 208),
    "recvmsg": (47, 212), "sendto": (44, 206), "kill": (62, 129)}
code, rules = [], sys.argv[1].split()
for call, argument, error in zip(rules[0::3], rules[1::3], rules[2::3]):
    compare = []
    if argument != "any":
        index, value = map(int, argument.split("="))
        compare = [(0x20, 0, 0, 16 + 8 * index), (0x15, 0, 1, value)]
    code += [(0x20, 0, 0, 0), (0x15, 0, len(compare) + 1, numbers[call][at])]
    code += compare + [(0x06, 0, 0, 0x00050000 | int(error))]
code += [(0x06, 0, 0, 0x7fff0000)]
text = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in code))
class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]
prctl = ctypes.CDLL(None, use_errno=True).prctl
assert prctl(38, 1, 0, 0, 0) == 0 # PR_SET_NO_NEW_PRIVS
assert prctl(22, 2, ctypes.byref(Filter(len(code), ctypes.addressof(text))), 0, 0) == 0 # PR_SET_SECCOMP
os.execv(sys.argv[2], sys.argv[2:])
"#;

/// An argument of a call: which one, from 0, and its value.
pub(crate) type Argument = (u8, i32);

/// `AF_INET6`, as the domain of socket(2).
pub(crate) const INET6: Option<Argument> = Some((0, 10));

/// `IP_BIND_ADDRESS_NO_PORT`, as the option of setsockopt(2).
pub(crate) const BIND_ADDRESS_NO_PORT: Option<Argument> = Some((2, 24));

/// A call, one of its arguments if that matters, and the error that it returns.
pub(crate) type Refused = (&'static str, Option<Argument>, Errno);

/// The command, to which these calls return these errors. `None`, with a word about it,
/// where that cannot be had.
pub(crate) fn refusing(refused: &[Refused]) -> Option<Command> {
    let rules = refused.iter().map(|(call, argument, errno)| {
        let argument =
            argument.map_or("any".to_owned(), |(index, value)| format!("{index}={value}"));
        format!("{call} {argument} {}", *errno as i32)
    });
    let rules = rules.collect::<Vec<_>>().join(" ");
    let filter = |program: &str| {
        let mut command = Command::new("python3");
        // Starts faster without what is installed beside it.
        command.args(["-I", "-S", "-c", FILTER, &rules, program]);
        command
    };
    static IS_POSSIBLE: OnceLock<bool> = OnceLock::new();
    let try_it = || filter("/bin/true").output().is_ok_and(|run| run.status.success());
    if !IS_POSSIBLE.get_or_init(try_it) {
        println!("skipped, since python3 cannot set a filter here");
        return None;
    }
    Some(filter(env!("CARGO_BIN_EXE_evecho")))
}

/// The command, without `/proc`. `None`, with a word about it, where that cannot be had.
pub(crate) fn without_proc() -> Option<Command> {
    let hide = "mount -t tmpfs none /proc && exec \"$@\"";
    let inside = |program: &str| {
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--mount", "sh", "-c", hide, "sh", program]);
        command
    };
    let possible = inside("true").output();
    if !possible.as_ref().is_ok_and(|output| output.status.success()) {
        println!("skipped, since it needs a mount namespace: {possible:?}");
        return None;
    }
    Some(inside(env!("CARGO_BIN_EXE_evecho")))
}
