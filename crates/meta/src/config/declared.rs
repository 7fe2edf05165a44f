//! *Which function of a file is one that the configuration names?*
//!
//! Names may be patterns; of several that are a function's the last holds. Files have tens of thousands of functions and most names are
//! whole, so these are looked up, and only patterns are tried one by one.

use crate::sites::Size;
use pointee_model::entries::matches;
use std::collections::HashMap;

/// An allocation function, as the analysis of sites needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    pub(super) name: String,
    /// How many bytes a call asks for.
    pub size: Size,
    /// The argument that is the old block, if it reallocates.
    pub old: Option<u8>,
    /// Whether it is meant only where it is another file's.
    pub is_elsewhere: bool,
}

/// Such functions by their names.
pub(crate) struct ByName<'d> {
    declared: &'d [Declared],
    /// Indices of the last of each name.
    whole: HashMap<&'d str, usize>,
    /// Indices of those with a pattern, in order.
    patterns: Vec<usize>,
}

impl<'d> ByName<'d> {
    pub(crate) fn new(declared: &'d [Declared]) -> Self {
        let (patterns, whole): (Vec<usize>, Vec<usize>) =
            (0..declared.len()).partition(|at| declared[*at].name.contains('*'));
        let whole = whole.into_iter().map(|at| (&*declared[at].name, at));
        Self {
            declared,
            whole: whole.collect(),
            patterns,
        }
    }

    /// What is said of function `name`, which the file itself defines or not.
    pub(crate) fn get(&self, name: &str, is_own: bool) -> Option<&'d Declared> {
        let whole = self.whole.get(name).copied();
        let mut patterns = self.patterns.iter().rev();
        let pattern = patterns.find(|at| matches(&self.declared[**at].name, name));
        let found = self.declared.get(whole.max(pattern.copied())?);
        found.filter(|found| !(is_own && found.is_elsewhere))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_that_names_a_function_holds() {
        let names = ["my_*", "my_alloc", "other", "my_al*", "my_alloc_2"];
        let declared: Vec<Declared> = (0..)
            .zip(names)
            .map(|(index, name)| Declared {
                name: name.to_owned(),
                size: Size::Argument {
                    index,
                    scale: 1,
                    add: 0,
                },
                old: None,
                is_elsewhere: index == 2,
            })
            .collect();
        let by_name = ByName::new(&declared);
        let rows = [
            ("my_alloc", false, Some("my_al*")),
            ("my_alloc_2", true, Some("my_alloc_2")),
            ("my_", true, Some("my_*")),
            ("other", false, Some("other")),
            ("other", true, None),
            ("others", false, None),
            ("", false, None),
        ];
        for (name, is_own, expect) in rows {
            let found = by_name.get(name, is_own).map(|found| found.name.as_str());
            assert_eq!(found, expect, "{name}");
        }
    }
}
