//! *What do liballocs' environment variables say?* — the same, in its compact form, separated by spaces.

use super::{Config, Kind, Origin, Rule, Signature, SignatureError};

const VARIABLES: [(&str, Kind); 4] = [
    ("LIBALLOCS_ALLOC_FNS", Kind::Wrapper),
    ("LIBALLOCS_SUBALLOC_FNS", Kind::Pool),
    ("LIBALLOCS_ALLOCSZ_FNS", Kind::Pool),
    ("LIBALLOCS_FREE_FNS", Kind::Free),
];

/// The rules that the environment holds, asked through `variable`; and what is wrong with them.
///
/// `LIBALLOCS_ALLOC_FNS` names wrappers of malloc, `LIBALLOCS_SUBALLOC_FNS` and `_ALLOCSZ_FNS` functions that hand out
/// parts, `LIBALLOCS_FREE_FNS` their frees.
#[must_use]
pub fn from_environment(
    variable: impl Fn(&str) -> Option<String>,
) -> (Config, Vec<(&'static str, SignatureError)>) {
    let mut config = Config::default();
    let mut wrong = Vec::new();
    for (name, kind) in VARIABLES {
        let value = variable(name).unwrap_or_default();
        for word in value.split_whitespace() {
            match Signature::parse(word) {
                Ok((function, signature)) => config.rules.push(Rule {
                    kind,
                    name: function,
                    module: None,
                    build_id: None,
                    address: None,
                    behind: None,
                    signature: Some(signature),
                    role: None,
                    free: None,
                    origin: Origin::Environment(name),
                }),
                Err(error) => wrong.push((name, error)),
            }
        }
    }
    // What frees a wrapper's blocks calls free, which is hooked: the name is only for the answer.
    config.rules.retain(|rule| !rule.name.is_empty());
    (config, wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_liballocs() {
        let variable = |name: &str| match name {
            "LIBALLOCS_ALLOC_FNS" => Some("xmalloc(Z)p  xcalloc(zZ)p".to_owned()),
            "LIBALLOCS_FREE_FNS" => Some("xfree(P)->xmalloc bad(".to_owned()),
            _ => None,
        };
        let (config, wrong) = from_environment(variable);
        let names: Vec<_> = config
            .rules
            .iter()
            .map(|rule| (rule.kind, rule.name.as_str()))
            .collect();
        let expect = [
            (Kind::Wrapper, "xmalloc"),
            (Kind::Wrapper, "xcalloc"),
            (Kind::Free, "xfree"),
        ];
        assert_eq!(names, expect);
        assert_eq!(wrong.len(), 1);
    }
}
