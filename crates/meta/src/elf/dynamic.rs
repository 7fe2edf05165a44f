//! *What does the file want of others when it is loaded, and what does it offer them?*
//!
//! Read without making a table of all symbols, since it is asked whenever a program starts. What is offered is found by the hash table that
//! the dynamic linker uses (`DT_GNU_HASH`).

use super::{Elf, LE};
use object::elf::{
    DT_NEEDED, DT_SONAME, Dyn64, DynamicTag, GnuHashHeader, SHN_UNDEF, STB_LOCAL, Sym64, gnu_hash,
};
use object::pod::{Pod, from_bytes, slice_from_bytes};
use object::{LittleEndian, U32, U64};

impl Elf {
    /// The files that it names as needed (`DT_NEEDED`), in order.
    #[must_use]
    pub fn needed(&self) -> Vec<&str> {
        self.dynamic_strings(DT_NEEDED).collect()
    }

    /// The name by which others need it (`DT_SONAME`).
    #[must_use]
    pub fn soname(&self) -> Option<&str> {
        self.dynamic_strings(DT_SONAME).next()
    }

    /// The folders, with colons between, where what it needs is looked for (`DT_RPATH` or `DT_RUNPATH`).
    pub(crate) fn run_paths(&self, tag: DynamicTag) -> impl Iterator<Item = &str> {
        self.dynamic_strings(tag)
    }

    /// The names that it takes from other files, without versions.
    pub fn imported_names(&self) -> impl Iterator<Item = &str> {
        let strings = self.stored(".dynstr");
        // Not only those before the ones that are hashed: a function whose address is taken may be among these.
        let undefined = self
            .dynamic_symbols()
            .iter()
            .filter(|symbol| symbol.st_shndx.get(LE) == SHN_UNDEF);
        undefined
            .filter_map(|symbol| text(strings, symbol.st_name.get(LE).into()))
            .filter(|name| !name.is_empty())
    }

    /// Whether other files can take `name`, of whatever version, from it.
    #[must_use]
    pub fn exports(&self, name: &str) -> bool {
        let Some(table) = self.hash_table() else {
            let mut symbols = self.symbols().filter(|symbol| symbol.dynamic);
            return symbols.any(|it| it.is_defined() && !it.is_local() && it.name == name);
        };
        let (symbols, strings) = (self.dynamic_symbols(), self.stored(".dynstr"));
        table.candidates(name).any(|at| {
            symbols.get(at).is_some_and(|symbol| {
                symbol.st_shndx.get(LE) != SHN_UNDEF
                    && symbol.st_bind() != STB_LOCAL
                    && text(strings, symbol.st_name.get(LE).into()) == Some(name)
            })
        })
    }

    fn dynamic_strings(&self, tag: DynamicTag) -> impl Iterator<Item = &str> {
        let strings = self.stored(".dynstr");
        let entries: &[Dyn64<LittleEndian>] = self.records_of(".dynamic");
        let of_tag = entries
            .iter()
            .filter(move |entry| entry.d_tag.get(LE) == tag);
        of_tag.filter_map(|entry| text(strings, entry.d_val.get(LE)))
    }

    fn dynamic_symbols(&self) -> &[Sym64<LittleEndian>] {
        self.records_of(".dynsym")
    }

    fn hash_table(&self) -> Option<HashTable<'_>> {
        HashTable::read(self.stored(".gnu.hash"))
    }

    /// The records that a section holds.
    fn records_of<T: Pod>(&self, section: &str) -> &[T] {
        let stored = self.stored(section);
        let whole = slice_from_bytes(stored, stored.len() / size_of::<T>());
        whole.map_or(&[], |(records, _)| records)
    }

    fn stored(&self, section: &str) -> &[u8] {
        let section = self.section(section);
        section.map_or(&[], |section| self.stored_bytes(section))
    }
}

/// The string at an offset.
fn text(strings: &[u8], at: u64) -> Option<&str> {
    let rest = strings.get(usize::try_from(at).ok()?..)?;
    let end = rest.iter().position(|byte| *byte == 0)?;
    std::str::from_utf8(&rest[..end]).ok()
}

/// Hashes of one chain that are looked at: it takes a damaged table to have more.
const LONGEST_CHAIN: usize = 1 << 14;

/// `DT_GNU_HASH`: a Bloom filter, buckets, and chains of hashes in the order of the symbols.
struct HashTable<'a> {
    /// The first symbol that is in it.
    first: usize,
    shift: u32,
    filter: &'a [U64<LittleEndian>],
    buckets: &'a [U32<LittleEndian>],
    /// One for each symbol from the first on.
    hashes: &'a [U32<LittleEndian>],
}

impl<'a> HashTable<'a> {
    fn read(bytes: &'a [u8]) -> Option<Self> {
        let (header, rest) = from_bytes::<GnuHashHeader<LittleEndian>>(bytes).ok()?;
        let (filter, rest) = slice_from_bytes(rest, header.bloom_count.get(LE) as usize).ok()?;
        let (buckets, rest) = slice_from_bytes(rest, header.bucket_count.get(LE) as usize).ok()?;
        let (hashes, _) = slice_from_bytes(rest, rest.len() / 4).ok()?;
        Some(Self {
            first: header.symbol_base.get(LE) as usize,
            shift: header.bloom_shift.get(LE),
            filter,
            buckets,
            hashes,
        })
    }

    /// The symbols that may have `name`, by number.
    fn candidates(&self, name: &str) -> impl Iterator<Item = usize> {
        let hash = gnu_hash(name.as_bytes());
        let start = self.start(hash).unwrap_or(usize::MAX);
        let chain = start
            .checked_sub(self.first)
            .and_then(|at| self.hashes.get(at..));
        let chain = chain.unwrap_or(&[]);
        let chain = chain.get(..LONGEST_CHAIN).unwrap_or(chain);
        // The last of a chain has its lowest bit set.
        let last = chain.iter().position(|stored| stored.get(LE) & 1 != 0);
        let chain = &chain[..last.map_or(0, |last| last + 1)];
        chain
            .iter()
            .zip(start..)
            .filter(move |(stored, _)| stored.get(LE) | 1 == hash | 1)
            .map(|(_, at)| at)
    }

    /// The first symbol of a hash's chain.
    fn start(&self, hash: u32) -> Option<usize> {
        let word = (hash as usize / 64).checked_rem(self.filter.len())?;
        let word = self.filter[word].get(LE);
        let other = hash.checked_shr(self.shift)?;
        let is_there = [hash, other].iter().all(|bit| word >> (bit % 64) & 1 != 0);
        let bucket = (hash as usize).checked_rem(self.buckets.len())?;
        is_there.then(|| self.buckets[bucket].get(LE) as usize)
    }
}
