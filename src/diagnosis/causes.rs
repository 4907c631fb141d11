//! An error as one line of text, with what caused it.

use std::error::Error;
use std::fmt;

/// An error followed by what caused it.
pub struct Causes<'error>(pub &'error (dyn Error + Send + Sync));

impl fmt::Display for Causes<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = self.0.to_string();
        formatter.write_str(&text)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            // Some libraries repeat the cause in their own text.
            let error_text = error.to_string();
            if !text.contains(&error_text) {
                write!(formatter, ": {error_text}")?;
            }
            text = error_text;
            cause = error.source();
        }
        Ok(())
    }
}

/// A problem, the error and its causes, as one line.
pub fn reason(problem: &str, error: &(dyn Error + Send + Sync)) -> String {
    format!("{problem}: {}", Causes(error))
}
