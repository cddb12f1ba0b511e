//! Errors for people: one line, each cause once.

/// What went wrong with its causes, outermost first. Many errors name their cause in their own text already; it is not said
/// again.
#[must_use]
pub fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if line.is_empty() {
            line = text;
        } else if !line.ends_with(&text) {
            line = format!("{line}: {text}");
        }
    }
    line.replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("reading {path}: {source}")]
    struct Named {
        path: &'static str,
        source: std::io::Error,
    }

    #[test]
    fn each_cause_is_said_once() {
        let inner = || Named { path: "/k", source: std::io::Error::other("no such key") };
        let error = anyhow::Error::new(inner()).context("opening the chunk store");
        assert_eq!(format!("{error:#}"), "opening the chunk store: reading /k: no such key: no such key");
        assert_eq!(one_line(&error), "opening the chunk store: reading /k: no such key");
        let silent = anyhow::anyhow!("b\nc").context("a");
        assert_eq!(one_line(&silent), "a: b c");
    }
}
