//! *Does a name match a pattern?* `*` stands for any run of characters, `?` for one.

/// Whether `name` as a whole matches `pattern`.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut p, mut n) = (0, 0);
    // Where to go on when what follows the last star does not fit: the star takes one more.
    let mut retry = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p, n));
                p += 1;
            }
            Some(c) if *c == b'?' || *c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match retry {
                Some((star, taken)) => {
                    p = star + 1;
                    n = taken + 1;
                    retry = Some((star, n));
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn stars_and_question_marks() {
        let rows = [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("*", "abc", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("lib*.so*", "libc.so.6", true),
            ("lib*.so", "libc.so.6", false),
            ("*a*b", "xaybzb", true),
            ("*a*b", "xaybz", false),
            ("a**", "a", true),
        ];
        for (pattern, name, expect) in rows {
            assert_eq!(matches(pattern, name), expect, "{pattern} {name}");
        }
    }
}
