//! The reference of settings and commands in `docs/`. `make settings` generates it from the
//! definition of the command line, and these tests check that it is up to date.

use std::fmt::Write as _;
use std::path::Path;

use celeriac::config::{FileSettings, LayeredSettings, Settings, with_defaults};
use clap::{Arg, Args, Command, FromArgMatches};

use super::{SettingsArgs, exit};
use crate::command_line;

/// The variable that `make settings` sets to write the files.
const WRITE: &str = "CELERIAC_WRITE_REFERENCE";

/// The widest line of the example file, in characters.
const WIDTH: usize = 96;

const INTRODUCTION: &str = "\
<!-- Generated from the code by `make settings` and checked by `cargo test`: do not edit it. -->

# Settings and commands

Each setting can be given as a flag, as an environment variable or as a key of a TOML file
(`--config FILE`). Flags take precedence over variables, and variables over the file. An empty
variable or key is treated as not set. One file or environment can hold the settings of all
commands: each command uses those that it needs. [celeriac.example.toml](celeriac.example.toml)
lists every key with its default.

Durations are written as `20ms`, `10m` or `1day`, and sizes as `512KiB` or `4MiB`.

";

const EXAMPLE_INTRODUCTION: &str = "\
# Every setting of Celeriac with its default, for `celeriac run --config FILE`. Each setting can also
# be given in the environment (CELERIAC_MAX_ROWS for max-rows) or on the command line (--max-rows);
# both take precedence over this file. An empty text is treated as not set. docs/settings.md has the
# details.
#
# Generated from the code by `make settings` and checked by `cargo test`.
";

#[test]
fn settings_md_is_up_to_date() {
    check("settings.md", &reference());
}

#[test]
fn the_example_file_has_every_setting_with_its_default() {
    let example = example();
    check("celeriac.example.toml", &example);

    let uncommented = |line: &str| match line.strip_prefix('#') {
        Some(setting) if !setting.starts_with(' ') => setting.to_owned(),
        _ => line.to_owned(),
    };
    let all = example.lines().map(uncommented).collect::<Vec<_>>().join("\n");
    let path = std::env::temp_dir().join(format!("celeriac-example-{}.toml", std::process::id()));
    std::fs::write(&path, &all).expect("the folder is writable");
    let file = FileSettings::read(&path);
    std::fs::remove_file(&path).expect("just written");
    let command = LayeredSettings::augment_args(Command::new("celeriac"))
        .mut_args(|argument| argument.env(clap::builder::Resettable::Reset));
    let command = with_defaults(command, &file.expect("every key is known"), |_| None);
    let matches = command.get_matches_from(["celeriac"]);
    let settings = LayeredSettings::from_arg_matches(&matches).expect("they are good");
    let read = settings.into_settings().check();
    let defaults = Settings::default().check().expect("the defaults are good");
    assert_eq!(format!("{:?}", read.expect("every value is good")), format!("{defaults:?}"));
    for setting in settings_of_the_file() {
        assert!(all.contains(&format!("\n{} = ", key(&setting))), "{setting} is missing");
    }
}

/// Compares a file with the expected text, or writes it if `make settings` runs this.
fn check(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name);
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(&path, text).expect("the folder is there");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == text, "docs/{name} is out of date: run `make settings`");
}

/// The arguments of all settings, and `--config`.
fn settings() -> Vec<Arg> {
    let command = SettingsArgs::augment_args(Command::new(""));
    command.get_arguments().cloned().collect()
}

fn settings_of_the_file() -> Vec<Arg> {
    settings().into_iter().filter(|setting| setting.get_id() != "config").collect()
}

fn key(setting: &Arg) -> &str {
    setting.get_long().expect("a setting has a name")
}

/// The long help of an argument without the default, and the default.
fn help(arg: &Arg) -> (String, Option<String>) {
    let help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
    let (help, default) = match help.rsplit_once("Default: ") {
        Some((help, default)) => (help.trim_end().to_owned(), Some(default.to_owned())),
        None => (help, None),
    };
    let of_clap = arg.get_default_values().first().map(|it| it.to_string_lossy().into_owned());
    (help, default.or(of_clap).map(|default| default.trim_matches('`').to_owned()))
}

/// The flag with the name of its value, or the name of a positional argument.
fn flag(arg: &Arg) -> String {
    let value = arg.get_value_names().map(|names| names.join(" "));
    let takes_value = arg.get_action().takes_values();
    match (arg.get_long(), value.filter(|_| takes_value)) {
        (Some(long), None) => format!("--{long}"),
        (Some(long), Some(value)) if arg.is_require_equals_set() => format!("--{long}={value}"),
        (Some(long), Some(value)) => format!("--{long} {value}"),
        (None, value) => value.unwrap_or_else(|| arg.get_id().as_str().to_uppercase()),
    }
}

fn code(text: &str) -> String {
    format!("`{text}`")
}

/// A default as Markdown. A phrase is not formatted as code.
fn shown_default(default: Option<&str>) -> String {
    match default {
        None | Some("none") => "none".to_owned(),
        Some(phrase) if phrase.contains(' ') => phrase.to_owned(),
        Some(default) => code(default),
    }
}

fn reference() -> String {
    let line = command_line();
    let users = |setting: &Arg| {
        let is_shown = |arg: &&Arg| arg.get_id() == setting.get_id() && !arg.is_hide_set();
        let uses = |command: &&Command| command.get_arguments().any(|arg| is_shown(&arg));
        in_order(&line).into_iter().filter(uses).map(Command::get_name).collect::<Vec<_>>()
    };
    let mut text = INTRODUCTION.to_owned();
    text.push_str("| setting | default | commands |\n| --- | --- | --- |\n");
    for setting in settings() {
        let (name, (_, default)) = (key(&setting), help(&setting));
        let default = shown_default(default.as_deref());
        let _ =
            writeln!(text, "| [{name}](#{name}) | {default} | {} |", users(&setting).join(", "));
    }
    text.push_str("\n## The settings\n");
    for setting in settings() {
        let (help, default) = help(&setting);
        let variable = setting.get_env().expect("a setting has a variable").to_string_lossy();
        let name = key(&setting);
        let file_key = if name == "config" { String::new() } else { format!(", key `{name}`") };
        let _ = write!(
            text,
            "\n### {name}\n\n{}\n\nFlag `{}`, variable `{variable}`{file_key}. Default: {}.\n",
            sentence(&help),
            flag(&setting),
            shown_default(default.as_deref()),
        );
    }
    text.push_str("\n## The commands\n");
    for command in in_order(&line) {
        describe(&mut text, command, "celeriac");
    }
    text.push_str(
        "\n## Exit status\n\nThe exit codes are the same for every command:\n\n| code | meaning |\n| --- | --- |\n",
    );
    for (code, meaning) in exit::CODES {
        let _ = writeln!(text, "| {code} | {meaning} |");
    }
    text
}

/// The subcommands of a command, in the order of its help.
fn in_order(command: &Command) -> Vec<&Command> {
    let mut commands: Vec<_> = command.get_subcommands().collect();
    commands.sort_by_key(|command| command.get_display_order());
    commands
}

/// The text with a full stop at the end. clap removes the full stop of a one-line help.
fn sentence(text: &str) -> String {
    let is_open = text.ends_with(|last: char| last.is_alphanumeric() || "`)".contains(last));
    format!("{text}{}", if is_open { "." } else { "" })
}

/// Describes a command with its own arguments, and its subcommands.
fn describe(text: &mut String, command: &Command, above: &str) {
    if command.is_hide_set() {
        return;
    }
    let name = format!("{above} {}", command.get_name());
    let about = command.get_long_about().or(command.get_about());
    let about = about.expect("a command says what it does").to_string();
    let _ = write!(text, "\n### {name}\n\n{}\n", sentence(&about));
    let settings = settings();
    let is_setting = |arg: &&Arg| settings.iter().any(|setting| setting.get_id() == arg.get_id());
    let own = command.get_arguments().filter(|arg| !is_setting(arg) && !arg.is_hide_set());
    for arg in own {
        let (help, default) = help(arg);
        let mut parts = vec![help.replace("\n\n", "\n\n  ")];
        if !arg.get_possible_values().is_empty() && arg.get_action().takes_values() {
            let values = arg.get_possible_values();
            let names: Vec<_> = values.iter().map(|value| code(value.get_name())).collect();
            parts.push(format!("One of {}.", names.join(", ")));
        }
        if let Some(variable) = arg.get_env() {
            parts.push(format!("Variable `{}`.", variable.to_string_lossy()));
        }
        // A flag without a value is false by default.
        if let Some(default) = default.filter(|_| arg.get_action().takes_values()) {
            parts.push(format!("Default: {}.", shown_default(Some(&default))));
        }
        let parts: Vec<_> = parts.iter().map(|part| sentence(part)).collect();
        let _ = write!(text, "\n- **`{}`**: {}\n", flag(arg), parts.join(" "));
    }
    for below in in_order(command) {
        describe(text, below, &name);
    }
}

fn example() -> String {
    let mut text = EXAMPLE_INTRODUCTION.to_owned();
    for setting in settings_of_the_file() {
        let (help, default) = help(&setting);
        let mut comment = help.split("\n\n").next().unwrap_or_default().to_owned();
        let value = match default.as_deref() {
            None | Some("none") => "\"\"".to_owned(),
            Some(phrase) if phrase.contains(' ') => {
                let _ = write!(comment, " Default: {phrase}.");
                "\"\"".to_owned()
            }
            Some(value) if value.parse::<i64>().is_ok() || value.parse::<bool>().is_ok() => {
                value.to_owned()
            }
            Some(value) => format!("{value:?}"),
        };
        let _ = write!(text, "\n{}#{} = {value}\n", commented(&comment), key(&setting));
    }
    text
}

/// The text as the lines of a comment.
fn commented(text: &str) -> String {
    let mut lines = vec!["#".to_owned()];
    for word in text.split_whitespace() {
        if lines.last().is_some_and(|line| line.chars().count() + 1 + word.chars().count() > WIDTH)
        {
            lines.push("#".to_owned());
        }
        if let Some(line) = lines.last_mut() {
            let _ = write!(line, " {word}");
        }
    }
    lines.join("\n") + "\n"
}
