//! Tags, and which of them a plain scalar has: the rules of YAML 1.1 in PyYAML
//! (`yaml/resolver.py` and `yaml/constructor.py`, 6.0.3).

/// The tags that PyYAML's `safe_load` knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tag {
    Null,
    Bool,
    Int,
    Float,
    Binary,
    Timestamp,
    Str,
    /// `<<`, which is good only as a key.
    Merge,
    /// `=`, which is good only as a key, and is a text then.
    Value,
    Seq,
    Omap,
    Pairs,
    Map,
    Set,
}

/// What a tag may be given to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Scalar,
    Sequence,
    Mapping,
}

impl Tag {
    /// The tag that is written as this name behind `!!`.
    pub(super) fn of_name(name: &str) -> Option<Self> {
        Some(match name {
            "null" => Self::Null,
            "bool" => Self::Bool,
            "int" => Self::Int,
            "float" => Self::Float,
            "binary" => Self::Binary,
            "timestamp" => Self::Timestamp,
            "str" => Self::Str,
            "merge" => Self::Merge,
            "value" => Self::Value,
            "seq" => Self::Seq,
            "omap" => Self::Omap,
            "pairs" => Self::Pairs,
            "map" => Self::Map,
            "set" => Self::Set,
            _ => return None,
        })
    }

    /// The tag that is written as this text in `!<…>`.
    pub(super) fn of_uri(uri: &str) -> Option<Self> {
        uri.strip_prefix("tag:yaml.org,2002:").and_then(Self::of_name)
    }

    /// The tag as it is written.
    pub(super) fn short(self) -> &'static str {
        match self {
            Self::Null => "!!null",
            Self::Bool => "!!bool",
            Self::Int => "!!int",
            Self::Float => "!!float",
            Self::Binary => "!!binary",
            Self::Timestamp => "!!timestamp",
            Self::Str => "!!str",
            Self::Merge => "!!merge",
            Self::Value => "!!value",
            Self::Seq => "!!seq",
            Self::Omap => "!!omap",
            Self::Pairs => "!!pairs",
            Self::Map => "!!map",
            Self::Set => "!!set",
        }
    }

    pub(super) fn kind(self) -> Kind {
        match self {
            Self::Seq | Self::Omap | Self::Pairs => Kind::Sequence,
            Self::Map | Self::Set => Kind::Mapping,
            _ => Kind::Scalar,
        }
    }

    /// The tag of a plain scalar.
    pub(super) fn of_plain(text: &str) -> Self {
        match text {
            "" | "~" | "null" | "Null" | "NULL" => Self::Null,
            "yes" | "Yes" | "YES" | "no" | "No" | "NO" | "true" | "True" | "TRUE" | "false"
            | "False" | "FALSE" | "on" | "On" | "ON" | "off" | "Off" | "OFF" => Self::Bool,
            "<<" => Self::Merge,
            "=" => Self::Value,
            _ if is_float(text) => Self::Float,
            _ if is_int(text) => Self::Int,
            _ if is_timestamp(text) => Self::Timestamp,
            _ => Self::Str,
        }
    }
}

/// The truth value that a text stands for.
pub(super) fn truth(text: &str) -> Option<bool> {
    let is_one_of = |names: [&str; 3]| names.iter().any(|name| name.eq_ignore_ascii_case(text));
    if is_one_of(["yes", "true", "on"]) {
        return Some(true);
    }
    is_one_of(["no", "false", "off"]).then_some(false)
}

/// The number in the text of an integer or a float.
pub(super) fn number(text: &str) -> Option<f64> {
    let text = text.replace('_', "").to_ascii_lowercase();
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1.0, digits),
        None => (1.0, text.strip_prefix('+').unwrap_or(&text)),
    };
    let radix = |digits: &str, radix: u32| {
        digits.chars().try_fold(0.0, |number, digit| {
            Some(number * f64::from(radix) + f64::from(digit.to_digit(radix)?))
        })
    };
    let number = match digits {
        ".inf" => f64::INFINITY,
        ".nan" => f64::NAN,
        _ if digits.contains(':') => digits
            .split(':')
            .try_fold(0.0, |number, part| Some(number * 60.0 + part.parse::<f64>().ok()?))?,
        _ => match digits.get(..2) {
            Some("0b") => radix(&digits[2..], 2)?,
            Some("0x") => radix(&digits[2..], 16)?,
            Some(_) if digits.starts_with('0') && digits.bytes().all(|b| b.is_ascii_digit()) => {
                radix(digits, 8)?
            }
            _ => digits.parse().ok()?,
        },
    };
    Some(sign * number)
}

/// What is left of a text behind an optional sign.
fn unsigned(text: &str) -> &str {
    text.strip_prefix(['-', '+']).unwrap_or(text)
}

/// What is left of a text behind as many of some characters as there are, and how many there were.
fn skip(text: &str, is_one: impl Fn(u8) -> bool) -> (&str, usize) {
    let count = text.bytes().take_while(|&byte| is_one(byte)).count();
    (&text[count..], count)
}

fn is_digit(byte: u8) -> bool {
    byte.is_ascii_digit()
}

fn is_digit_or_underscore(byte: u8) -> bool {
    is_digit(byte) || byte == b'_'
}

/// What is left of a text behind one or more groups to the base 60.
fn skip_sixtieths(text: &str) -> Option<&str> {
    let mut rest = text;
    while let Some(group) = rest.strip_prefix(':') {
        rest = match group.as_bytes() {
            [b'0'..=b'5', b'0'..=b'9', ..] => &group[2..],
            [b'0'..=b'9', ..] => &group[1..],
            _ => return None,
        };
    }
    (rest.len() < text.len()).then_some(rest)
}

fn is_int(text: &str) -> bool {
    let digits = unsigned(text);
    let is_all = |digits: &str, is_one: fn(u8) -> bool| {
        !digits.is_empty() && digits.bytes().all(|byte| byte == b'_' || is_one(byte))
    };
    match digits.as_bytes() {
        [b'0'] => true,
        [b'0', b'b', ..] => is_all(&digits[2..], |byte| matches!(byte, b'0' | b'1')),
        [b'0', b'x', ..] => is_all(&digits[2..], |byte| byte.is_ascii_hexdigit()),
        [b'0', ..] => is_all(&digits[1..], |byte| matches!(byte, b'0'..=b'7')),
        [b'1'..=b'9', ..] => {
            let (rest, _) = skip(digits, is_digit_or_underscore);
            rest.is_empty() || skip_sixtieths(rest) == Some("")
        }
        _ => false,
    }
}

fn is_float(text: &str) -> bool {
    let digits = unsigned(text);
    // Behind the digits of a fraction.
    let is_exponent = |rest: &str| {
        let exponent = rest.strip_prefix(['e', 'E']).and_then(|rest| rest.strip_prefix(['-', '+']));
        rest.is_empty()
            || exponent.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(is_digit))
    };
    match digits.as_bytes() {
        [b'0'..=b'9', ..] => {
            let (rest, _) = skip(digits, is_digit_or_underscore);
            if let Some(fraction) = rest.strip_prefix('.') {
                return is_exponent(skip(fraction, is_digit_or_underscore).0);
            }
            let fraction = skip_sixtieths(rest).and_then(|rest| rest.strip_prefix('.'));
            fraction.is_some_and(|fraction| fraction.bytes().all(is_digit_or_underscore))
        }
        [b'.', b'0'..=b'9', ..] => {
            digits.len() == text.len() && is_exponent(skip(&digits[1..], is_digit_or_underscore).0)
        }
        b".inf" | b".Inf" | b".INF" => true,
        b".nan" | b".NaN" | b".NAN" => digits.len() == text.len(),
        _ => false,
    }
}

fn is_timestamp(text: &str) -> bool {
    is_date(text) || is_date_and_time(text).is_some()
}

fn is_date(text: &str) -> bool {
    let is_part = |part: &str, length: usize| part.len() == length && part.bytes().all(is_digit);
    let mut parts = text.split('-');
    let mut next = |length| parts.next().is_some_and(|part| is_part(part, length));
    next(4) && next(2) && next(2) && parts.next().is_none()
}

fn is_date_and_time(text: &str) -> Option<()> {
    let digits = |text, least: usize, most: usize| {
        let (rest, count) = skip(text, is_digit);
        (least..=most).contains(&count).then_some(rest)
    };
    let is_space = |byte| matches!(byte, b' ' | b'\t');
    let rest = digits(text, 4, 4)?.strip_prefix('-')?;
    let rest = digits(rest, 1, 2)?.strip_prefix('-')?;
    let rest = digits(rest, 1, 2)?;
    let rest = match rest.strip_prefix(['T', 't']) {
        Some(rest) => rest,
        None => Some(skip(rest, is_space)).filter(|(_, count)| *count > 0)?.0,
    };
    let rest = digits(rest, 1, 2)?.strip_prefix(':')?;
    let rest = digits(rest, 2, 2)?.strip_prefix(':')?;
    let mut rest = digits(rest, 2, 2)?;
    if let Some(fraction) = rest.strip_prefix('.') {
        rest = skip(fraction, is_digit).0;
    }
    if rest.is_empty() {
        return Some(());
    }
    let zone = skip(rest, is_space).0;
    if zone == "Z" {
        return Some(());
    }
    let rest = digits(zone.strip_prefix(['-', '+'])?, 1, 2)?;
    let rest = match rest.strip_prefix(':') {
        Some(minutes) => digits(minutes, 2, 2)?,
        None => rest,
    };
    rest.is_empty().then_some(())
}
