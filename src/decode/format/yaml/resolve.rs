//! The meaning of scalars by the rules of YAML 1.1, as in PyYAML (`yaml/resolver.py` and
//! `yaml/constructor.py`, 6.0.3).

use std::sync::LazyLock;

use regex::Regex;

/// Plain scalars that are not of the tag `str`. The names of the groups are their tags.
const PLAIN: &str = r"(?x)^(?:
    (?<bool>yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)
    |(?<float>[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?
        |\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?
        |[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+\.[0-9_]*
        |[-+]?\.(?:inf|Inf|INF)
        |\.(?:nan|NaN|NAN))
    |(?<int>[-+]?0b[0-1_]+
        |[-+]?0[0-7_]+
        |[-+]?(?:0|[1-9][0-9_]*)
        |[-+]?0x[0-9a-fA-F_]+
        |[-+]?[1-9][0-9_]*(?::[0-5]?[0-9])+)
    |(?<merge><<)
    |(?<null>~|null|Null|NULL|)
    |(?<timestamp>[0-9]{4}-[0-9]{2}-[0-9]{2}
        |[0-9]{4}-[0-9][0-9]?-[0-9][0-9]?
         (?:[Tt]|[\ \t]+)[0-9][0-9]?:[0-9]{2}:[0-9]{2}(?:\.[0-9]*)?
         (?:[\ \t]*(?:Z|[-+][0-9][0-9]?(?::[0-9]{2})?))?)
    |(?<value>=)
)$";

#[expect(clippy::expect_used, reason = "the pattern is a constant, and the tests compile it")]
static PATTERN: LazyLock<Regex> = LazyLock::new(|| Regex::new(PLAIN).expect("a valid pattern"));

/// The tag of a plain scalar.
pub(super) fn plain(text: &str) -> &'static str {
    let Some(found) = PATTERN.captures(text) else { return "str" };
    let mut names = PATTERN.capture_names().flatten();
    names.find(|name| found.name(name).is_some()).unwrap_or("str")
}

/// The value of a boolean.
pub(super) fn truth(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "yes" | "true" | "on" => Some(true),
        "no" | "false" | "off" => Some(false),
        _ => None,
    }
}

/// The value of an integer or a float.
pub(super) fn number(text: &str) -> Option<f64> {
    let text = text.replace('_', "").to_ascii_lowercase();
    let text = text.replace(".inf", "inf").replace(".nan", "nan");
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1.0, digits),
        None => (1.0, text.strip_prefix('+').unwrap_or(&text)),
    };
    let in_base = |base: u32, digits: &str| {
        let mut digits = digits.chars().map(|digit| digit.to_digit(base).map(f64::from));
        digits.try_fold(0.0, |number, digit| Some(number * f64::from(base) + digit?))
    };
    let number = match digits.as_bytes() {
        [b'0', b'b', _, ..] => in_base(2, &digits[2..])?,
        [b'0', b'x', _, ..] => in_base(16, &digits[2..])?,
        [b'0', rest @ ..] if rest.iter().all(u8::is_ascii_digit) => in_base(8, digits)?,
        // Colons separate digits in base 60.
        _ => digits
            .split(':')
            .try_fold(0.0, |number, part| Some(number * 60.0 + part.parse::<f64>().ok()?))?,
    };
    Some(sign * number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_scalars_are_what_they_are_in_yaml_1_1() {
        let all = |tag: &str, texts: &[&str]| {
            for text in texts {
                assert_eq!(plain(text), tag, "{text}");
            }
        };
        all("null", &["", "~", "null", "Null", "NULL"]);
        all("bool", &["yes", "No", "TRUE", "false", "On", "OFF"]);
        all("int", &["0", "-7", "+1_000", "0b1_0", "017", "0_7", "0xaF", "1:30", "190:20:30"]);
        all(
            "float",
            &["1.", "-1.5", "1_0.5e+3", ".5", "1:30.5", "-.inf", "+.INF", ".NaN", "1.0e+22"],
        );
        all("timestamp", &["2001-12-14", "2001-1-1 1:00:00", "2001-12-14t21:59:43.10-05:00"]);
        all("timestamp", &["2001-12-14 21:59:43.1 Z", "2001-12-14  21:59:43 +5"]);
        all("str", &["nULL", "y", "n", "tRue", "08", "0b2", "0x", "1:60", "1:", "_1", "-", "+"]);
        all("str", &[".", "-.nan", "1e5", "1.0e5", "-.5e", "._5", "2001-1-1"]);
        all("str", &["2001-12-14 21:59", "2001-12-14 21:59:43 +5:0", "2001-12-14T", "=="]);
    }
}
