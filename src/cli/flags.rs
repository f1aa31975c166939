//! Fields and flags: the library speaks of the fields of a configuration, in backquotes; people who
//! use the command line read of flags.

use std::borrow::Cow;

/// Fields whose flags have other names.
const RENAMED: [(&str, &str); 2] =
    [("transport", "--tcp-only, --udp-only"), ("udp_offload", "--no-udp-offload")];

/// The same text with flags where it has fields: `max_frame` becomes --max-frame.
pub(super) fn with_flags(text: &str) -> Cow<'_, str> {
    let mut pieces = text.split('`');
    let mut shown = match (pieces.next(), text.contains('`')) {
        (Some(before), true) => before.to_owned(),
        _ => return text.into(),
    };
    // Every other piece is between two backquotes, but for the last one without an end.
    while let Some(inside) = pieces.next() {
        match pieces.next() {
            Some(after) if is_field(inside) => shown.extend([&flag(inside), after]),
            Some(after) => shown.extend(["`", inside, "`", after]),
            None => shown.extend(["`", inside]),
        }
    }
    shown.into()
}

fn is_field(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
}

fn flag(field: &str) -> String {
    let renamed = RENAMED.iter().find(|(name, _)| *name == field);
    renamed.map_or_else(|| format!("--{}", field.replace('_', "-")), |(_, flag)| flag.to_string())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::fs;
    use std::path::Path;

    use clap::CommandFactory;

    use super::*;

    #[test]
    fn fields_become_flags() {
        for (text, shown) in [
            ("`max_frame` is 0 bytes", "--max-frame is 0 bytes"),
            ("a (`port`), b (`udp_offload`)", "a (--port), b (--no-udp-offload)"),
            ("nothing here", "nothing here"),
            ("`not a field`, `Nor::this`, nor ` this", "`not a field`, `Nor::this`, nor ` this"),
            ("", ""),
        ] {
            assert_eq!(with_flags(text), shown);
        }
    }

    /// Calls `see` with each line of code below `folder`, but for the command line's own.
    fn each_line(folder: &Path, see: &mut impl FnMut(&Path, &str)) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("cli") {
                each_line(&path, see);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                text.lines().for_each(|line| see(&path, line));
            }
        }
    }

    #[test]
    fn what_the_library_names_are_flags_of_ours() {
        let command = crate::cli::Cli::command();
        let commands = [&command].into_iter().chain(command.get_subcommands());
        let flags: HashSet<String> = commands
            .flat_map(|command| command.get_arguments())
            .filter_map(|argument| argument.get_long().map(|long| format!("--{long}")))
            .collect();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        each_line(&source, &mut |path, line| {
            // Comments have backquotes for whatever is code.
            let code = line.split("//").next().unwrap_or_default();
            for field in code.split('`').skip(1).step_by(2).filter(|name| is_field(name)) {
                let known = flag(field).split(", ").all(|flag| flags.contains(flag));
                assert!(known, "{}: no flag for `{field}`", path.display());
            }
        });
    }
}
