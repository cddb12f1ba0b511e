//! Which VMs a set is of: rules over names and tags.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;
use tidemark_proto::limits::NAME_MAX_CHARS;
use wildmatch::WildMatch;

/// Characters of a rule at most: some names and patterns. Longer ones are refused.
const RULE_MAX_CHARS: usize = 4 * NAME_MAX_CHARS;

/// One rule: `name=PATTERN`, `tag:KEY=PATTERN`, or several of these separated by commas, which must all hold. In a pattern
/// `*` stands for any characters and `?` for one.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    text: String,
    terms: Vec<Term>,
}

#[derive(Debug, Clone, PartialEq)]
enum Term {
    Name(WildMatch),
    Tag(String, WildMatch),
}

/// The text is no rule.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "'{0}' is no rule: write name=web-* or tag:app=shop, or several with commas between, which must all hold"
)]
pub struct InvalidRule(String);

impl FromStr for Rule {
    type Err = InvalidRule;
    fn from_str(text: &str) -> Result<Self, InvalidRule> {
        let term = |text: &str| {
            let (subject, pattern) = text.trim().split_once('=')?;
            let pattern = Some(pattern).filter(|pattern| !pattern.is_empty())?;
            match subject.split_once(':') {
                None if subject == "name" => Some(Term::Name(WildMatch::new(pattern))),
                Some(("tag", key)) if !key.is_empty() => {
                    Some(Term::Tag(key.to_owned(), WildMatch::new(pattern)))
                }
                _ => None,
            }
        };
        let printable = text.chars().count() <= RULE_MAX_CHARS && !text.chars().any(char::is_control);
        let terms: Option<Vec<Term>> = text.split(',').map(term).collect();
        match terms.filter(|_| printable) {
            Some(terms) => Ok(Self { text: text.to_owned(), terms }),
            None => Err(InvalidRule(text.chars().filter(|c| !c.is_control()).take(RULE_MAX_CHARS).collect())),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Rule {
    /// Whether it holds for a VM of this name with these tags, keys and values.
    #[must_use]
    pub fn holds(&self, name: &str, tags: &[(String, String)]) -> bool {
        self.terms.iter().all(|term| match term {
            Term::Name(pattern) => pattern.matches(name),
            Term::Tag(key, pattern) => tags.iter().any(|(has, value)| has == key && pattern.matches(value)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(rule: &str, name: &str, tags: &[(&str, &str)]) -> bool {
        let tags: Vec<_> = tags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        rule.parse::<Rule>().unwrap().holds(name, &tags)
    }

    #[test]
    fn rules_match_names_and_tags_and_commas_mean_both() {
        assert!(holds("name=web-*", "web-1", &[]) && holds("name=web-*", "web-", &[]));
        assert!(!holds("name=web-*", "my-web-1", &[]) && !holds("name=web-?", "web-10", &[]));
        assert!(holds("name=*", "anything", &[]));
        assert!(holds("tag:app=shop", "x", &[("tier", "db"), ("app", "shop")]));
        assert!(!holds("tag:app=shop", "x", &[("app", "shopping")]) && !holds("tag:app=*", "x", &[]));
        let both = "name=db-*, tag:app=sh*";
        assert!(holds(both, "db-1", &[("app", "shop")]));
        assert!(!holds(both, "db-1", &[]) && !holds(both, "web-1", &[("app", "shop")]));
        assert_eq!(both.parse::<Rule>().unwrap().to_string(), both);
    }

    #[test]
    fn what_is_no_rule_is_refused() {
        let long = format!("name={}", "x".repeat(RULE_MAX_CHARS));
        for bad in
            ["", "web-*", "name=", "tag=app", "tag:=x", "tag:app", "name=a,", "nom=a", "name=a\n", &long]
        {
            assert!(bad.parse::<Rule>().is_err(), "{bad}");
        }
    }
}
