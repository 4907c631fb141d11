//! The reference of settings and commands in `docs/`, made from the command line's definition and
//! checked against it: `make settings` writes it.

use std::fmt::Write as _;
use std::path::Path;

use celeriac::config::{FileSettings, LayeredSettings, Settings, with_defaults};
use clap::{Arg, Args, Command, FromArgMatches};

use super::{SettingsArgs, exit};
use crate::command_line;

/// What `make settings` sets.
const WRITE: &str = "CELERIAC_WRITE_REFERENCE";

/// The widest line of the example file, in characters.
const WIDTH: usize = 96;

const INTRODUCTION: &str = "\
<!-- Made from the code by `make settings`, and checked by `cargo test`: do not edit it. -->

# Settings and commands

Each setting is a flag, a variable and a key of a TOML file (`--config FILE`). Flags win over
variables, and these over the file; a variable or a key that is empty says nothing. One file or
environment may have the settings of all commands: each command takes those that concern it.
[celeriac.example.toml](celeriac.example.toml) has every key with its default.

Durations are written `20ms`, `10m` or `1day`, sizes `512KiB` or `4MiB`.

";

const EXAMPLE_INTRODUCTION: &str = "\
# Every setting of Celeriac with its default, for `celeriac run --config FILE`. Each may stand in the
# environment as well, as CELERIAC_MAX_ROWS for max-rows, or on the command line, as --max-rows; both
# win over this file. An empty text says nothing. docs/settings.md says more about each.
#
# Made from the code by `make settings`, and checked by `cargo test`.
";

#[test]
fn the_settings_are_described() {
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

/// Compares a file with what it should be, or writes it.
fn check(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name);
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(&path, text).expect("the folder is there");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == text, "docs/{name} is not what the code says: run `make settings`");
}

/// The arguments of all settings, and that of the file.
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

/// The whole help of an argument, and what it says of the default.
fn help(arg: &Arg) -> (String, Option<String>) {
    let help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
    let (help, default) = match help.rsplit_once("Default: ") {
        Some((help, default)) => (help.trim_end().to_owned(), Some(default.to_owned())),
        None => (help, None),
    };
    let of_clap = arg.get_default_values().first().map(|it| it.to_string_lossy().into_owned());
    (help, default.or(of_clap).map(|default| default.trim_matches('`').to_owned()))
}

/// The flag with its value, or the name of a value without a flag.
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

/// A default as Markdown: what is a phrase is no code.
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
        "\n## Exit status\n\nThe same for every command:\n\n| code | when |\n| --- | --- |\n",
    );
    for (code, meaning) in exit::CODES {
        let _ = writeln!(text, "| {code} | {meaning} |");
    }
    text
}

/// The commands below one, as its help lists them.
fn in_order(command: &Command) -> Vec<&Command> {
    let mut commands: Vec<_> = command.get_subcommands().collect();
    commands.sort_by_key(|command| command.get_display_order());
    commands
}

/// A text that ends as a sentence does: clap takes the full stop of a single line.
fn sentence(text: &str) -> String {
    let is_open = text.ends_with(|last: char| last.is_alphanumeric() || "`)".contains(last));
    format!("{text}{}", if is_open { "." } else { "" })
}

/// A command with the arguments that are its own, and the commands below it.
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
        let mut told = vec![help.replace("\n\n", "\n\n  ")];
        if !arg.get_possible_values().is_empty() && arg.get_action().takes_values() {
            let values = arg.get_possible_values();
            let names: Vec<_> = values.iter().map(|value| code(value.get_name())).collect();
            told.push(format!("One of {}.", names.join(", ")));
        }
        if let Some(variable) = arg.get_env() {
            told.push(format!("Variable `{}`.", variable.to_string_lossy()));
        }
        // A flag without a value is false by default.
        if let Some(default) = default.filter(|_| arg.get_action().takes_values()) {
            told.push(format!("Default: {}.", shown_default(Some(&default))));
        }
        let told: Vec<_> = told.iter().map(|part| sentence(part)).collect();
        let _ = write!(text, "\n- **`{}`**: {}\n", flag(arg), told.join(" "));
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

/// A text in lines of a comment.
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
