//! *Which argument is what?* — liballocs' compact form: `xcalloc(zZ)p`.
//!
//! ```text
//!   name ( z size, p pointer, i integer, h the pool; a capital letter: the one that counts ) p
//!
//!   arena_alloc(hZ)p      cuts a block out of a pool           arena_free(hP)    takes one back
//!   arena_realloc(hPZ)p   takes one back and cuts out another  arena_end(H)      takes all of a pool back
//!   arena_rewind(hM)      takes back what the chunk of M holds from there on
//! ```

use crate::sites::Size;
use pointee_model::entries::{Declared, Role};

/// A signature without its name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Signature {
    arguments: Vec<u8>,
    /// Returns a pointer.
    pub returns: bool,
}

/// What is wrong with a signature.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// There are no parentheses.
    #[error("expected a signature like `xcalloc(zZ)p`, found `{0}`")]
    Form(String),
    /// A letter that stands for nothing.
    #[error(
        "expected `z` or `Z` (size), `p` or `P` (pointer), `i` (integer), and of a pool `h` (which), `H` (all of it) or `M` (from there on) for an argument, found `{0}`"
    )]
    Argument(char),
    /// A result that is none.
    #[error("expected `p` or nothing as the result, found `{0}`")]
    Result(String),
}

impl Signature {
    /// Reads `name(zZ)p`: the name, which may be empty, and the signature.
    ///
    /// # Errors
    /// [`SignatureError`].
    pub fn parse(text: &str) -> Result<(String, Self), SignatureError> {
        let form = || SignatureError::Form(text.to_owned());
        let (name, rest) = text.trim().split_once('(').ok_or_else(form)?;
        let (arguments, result) = rest.split_once(')').ok_or_else(form)?;
        let wrong = |letter: &char| !"zZpPiIhHM".contains(*letter);
        if let Some(letter) = arguments.chars().find(wrong) {
            return Err(SignatureError::Argument(letter));
        }
        // Frees may name their allocator: `xfree(P)->xmalloc`.
        let returns = match result.trim() {
            "p" | "P" => true,
            "" | "v" => false,
            other if other.starts_with("->") => false,
            other => return Err(SignatureError::Result(other.to_owned())),
        };
        let signature = Self {
            arguments: arguments.bytes().collect(),
            returns,
        };
        Ok((name.trim().to_owned(), signature))
    }

    /// Number of the size argument: the capital one, else the only one.
    #[must_use]
    pub fn size(&self) -> Option<u8> {
        let at = |letter: u8| self.arguments.iter().position(|found| *found == letter);
        let found = at(b'Z').or_else(|| {
            let only = self
                .arguments
                .iter()
                .filter(|found| **found == b'z')
                .count()
                == 1;
            only.then(|| at(b'z')).flatten()
        })?;
        u8::try_from(found).ok()
    }

    /// Number of the argument that the size is to be multiplied with: another size before it, as in `calloc`.
    #[must_use]
    pub fn count(&self) -> Option<u8> {
        let size = self.size()?;
        let before = self.arguments.get(..usize::from(size))?;
        let found = before.iter().position(|found| *found == b'z')?;
        u8::try_from(found).ok()
    }

    /// How many bytes a call asks for.
    #[must_use]
    pub fn amount(&self) -> Size {
        match (self.size(), self.count()) {
            (Some(size), Some(count)) => Size::Product(count, size),
            (Some(index), None) => Size::Argument {
                index,
                scale: 1,
                add: 0,
            },
            (None, _) => Size::Unknown,
        }
    }

    /// Number of the old block, if it looks like `realloc`.
    #[must_use]
    pub fn old(&self) -> Option<u8> {
        (self.role() == Some(Role::Realloc)).then_some(0)
    }

    /// Number of the pointer that is freed: the capital one, else the only one.
    #[must_use]
    pub fn freed(&self) -> Option<u8> {
        let pointers = || self.arguments.iter().filter(|found| **found == b'p');
        let found = self.arguments.iter().position(|found| *found == b'P');
        let only = || self.arguments.iter().position(|found| *found == b'p');
        let found = found.or_else(|| (pointers().count() == 1).then(only).flatten())?;
        u8::try_from(found).ok()
    }

    /// What a pool's function that looks so does, and with which arguments; `None` if its calls cannot be recorded:
    /// only the first three arguments are seen.
    #[must_use]
    pub fn of_pool(&self) -> Option<Declared> {
        let at = |letter: u8| self.arguments.iter().position(|found| *found == letter);
        let number = |letter: u8| u8::try_from(at(letter)?).ok();
        let (whole, mark) = (number(b'H'), number(b'M'));
        let (role, argument) = match (self.returns, whole, mark) {
            (true, ..) if at(b'P').is_some() => (Role::PoolRealloc, self.size()?),
            (true, ..) => (Role::PoolAlloc, self.size()?),
            (false, Some(whole), _) => (Role::PoolReset, whole),
            (false, None, Some(mark)) => (Role::PoolTrim, mark),
            (false, None, None) => (Role::PoolFree, self.freed()?),
        };
        let declared = Declared {
            role,
            argument,
            count: self.count().filter(|_| self.returns),
            old: number(b'P').filter(|_| self.returns),
            pool: number(b'h'),
            is_found: false,
        };
        let counts = [Some(argument), declared.count, declared.old, declared.pool];
        let all_seen = counts.into_iter().flatten().all(|it| it < Declared::SEEN);
        all_seen.then_some(declared)
    }

    /// The standard function that it looks like; `None` if it looks like none whose calls can be recorded.
    #[must_use]
    pub fn role(&self) -> Option<Role> {
        let lower: Vec<u8> = self.arguments.to_ascii_lowercase();
        match (lower.as_slice(), self.returns) {
            // What follows the size (flags, a tag, a place in the source) changes nothing.
            (b"pz", true) => Some(Role::Realloc),
            (b"zz", true) if self.size() == Some(1) => Some(Role::Calloc),
            ([b'z', ..], true) if self.size() == Some(0) => Some(Role::Malloc),
            ([b'p', ..], false) if self.freed() == Some(0) => Some(Role::Free),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compact_forms() {
        let rows = [
            ("xmalloc(Z)p", Some(0), None, Some(Role::Malloc)),
            ("xcalloc(zZ)p", Some(1), Some(0), Some(Role::Calloc)),
            ("xrealloc(pZ)p", Some(1), None, Some(Role::Realloc)),
            ("tagged(Zi)p", Some(0), None, Some(Role::Malloc)),
            ("pool_alloc(pZ)p", Some(1), None, Some(Role::Realloc)),
            ("make(iZ)p", Some(1), None, None),
            ("give()p", None, None, None),
        ];
        for (text, size, count, role) in rows {
            let (_, signature) = Signature::parse(text).expect(text);
            assert_eq!(signature.size(), size, "{text}");
            assert_eq!(signature.count(), count, "{text}");
            assert_eq!(signature.role(), role, "{text}");
        }
        let (name, free) = Signature::parse("xfree(P)->xmalloc").expect("a free");
        assert_eq!((name.as_str(), free.role()), ("xfree", Some(Role::Free)));
        let rows = [
            ("a(hZ)p", Some((Role::PoolAlloc, 1, None, Some(0)))),
            ("a(Z)p", Some((Role::PoolAlloc, 0, None, None))),
            ("a(PZ)p", Some((Role::PoolRealloc, 1, Some(0), None))),
            ("a(hPZ)p", Some((Role::PoolRealloc, 2, Some(1), Some(0)))),
            ("a(zP)", Some((Role::PoolFree, 1, None, None))),
            ("a(H)", Some((Role::PoolReset, 0, None, None))),
            ("a(hM)", Some((Role::PoolTrim, 1, None, Some(0)))),
            ("a(pppZ)p", None),
            ("a(i)", None),
        ];
        for (text, expect) in rows {
            let (_, signature) = Signature::parse(text).expect(text);
            let declared = signature.of_pool();
            let found = declared.map(|it| (it.role, it.argument, it.old, it.pool));
            assert_eq!(found, expect, "{text}");
            let again = declared.map(|it| Declared::from_word(it.to_word()));
            assert_eq!(again, declared, "{text}");
        }
        for text in ["xmalloc", "xmalloc(Z", "xmalloc(q)p", "xmalloc(Z)q"] {
            assert!(Signature::parse(text).is_err(), "{text}");
        }
    }
}
