//! What no command has alone: the flags, and the manual pages in `man/`.

mod manual;

use std::collections::HashSet;

use super::*;

#[test]
fn each_setting_of_the_library_has_a_flag() {
    let command = Cli::command();
    let flags: HashSet<&str> =
        command.get_arguments().filter_map(|argument| argument.get_long()).collect();
    for setting in evecho::Setting::ALL {
        assert!(flags.contains(&*flag(setting.field())), "no flag sets {setting}");
    }
}
