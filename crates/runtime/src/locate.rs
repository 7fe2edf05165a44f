//! *Where are the allocation functions of this object?*
//!
//! By name: in the dynamic symbols, through the hash table the object carries; else in the symbol table of its
//! file; else in its metadata image, if the session has given one. A name that is only in the symbol table (a private copy of an allocator) counts when the object has both the
//! allocating and the freeing name of one family: a lone private `free` is somebody's list code. In a statically linked program
//! the name that allocates is enough, if all of the program means the same by it.
//!
//! `operator new` and `delete` are hooked only in objects that have a malloc of their own: elsewhere they call
//! malloc, which is hooked, and the walk goes through them.

#![allow(unsafe_code)] // Reads symbol tables of loaded objects and of their files.

use crate::declared;
use crate::elf_file::ElfFile;
use crate::modules::{self, Module};
use core::ffi::CStr;
use pointee_model::entries::{Declared, FAMILIES, FAMILY, Named, OPERATORS, PROCESS, Role};

/// A function found.
#[derive(Clone, Copy)]
pub(crate) struct Function {
    pub(crate) name: &'static str,
    pub(crate) role: Role,
    pub(crate) address: u64,
    /// Bytes of its body; 0 if unknown.
    pub(crate) len: u64,
    /// By the user's configuration: an allocator of its own, whatever else the object has.
    pub(crate) declared: Option<Declared>,
}

impl Function {
    /// What it does, and with which arguments.
    pub(crate) fn says(&self) -> Declared {
        self.declared.unwrap_or(Declared::of(self.role))
    }
}

/// Address and length of each name of a family; address 0 where it is not there.
type Places = [(u64, u64)];

/// The first name allocates, the second frees: without both it is no allocator.
fn is_allocator(places: &Places) -> bool {
    places[0].0 != 0 && places[1].0 != 0
}

/// Calls `found` for every function to hook in `module`, in the order of the tables.
pub(crate) fn functions(module: &Module, mut found: impl FnMut(Function)) {
    let symbols = Symbols::of(module);
    let exported = |name: &str| symbols.as_ref().and_then(|symbols| symbols.find(name));
    let mut file = None;
    let mut has_malloc = false;
    for family in &FAMILIES {
        let mut places = [(0, 0); FAMILY];
        if exported(family[0].0).is_some() {
            for (place, (name, _)) in places.iter_mut().zip(family) {
                *place = exported(name).unwrap_or_default();
            }
        }
        let mut is_there = is_allocator(&places);
        if !is_there && let Some(table) = file.get_or_insert_with(|| FileSymbols::of(module)) {
            if module.is_static {
                // What the program does not call was not linked into it.
                table.find_all(module, family, &mut places, false);
                is_there = places[0].0 != 0;
            }
            if !is_there {
                table.find_all(module, family, &mut places, true);
                is_there = is_allocator(&places);
            }
        }
        if !is_there {
            // The image's maker has read what is not in the file: debug files, compressed symbols.
            module.each_entry(|name, address, len, _| {
                if let Some(at) = family.iter().position(|(known, _)| *known == name) {
                    places[at] = (address, len);
                }
            });
            is_there = is_allocator(&places);
        }
        if !is_there {
            continue;
        }
        has_malloc = true;
        for ((name, role), (address, len)) in family.iter().zip(places) {
            if address != 0 {
                found(Function {
                    name,
                    role: *role,
                    address,
                    len,
                    declared: None,
                });
            }
        }
    }
    // What the user's configuration declares is named by no table.
    module.each_entry(|name, address, len, role| {
        let declared = Declared::from_word(role);
        if declared.role != Role::Other {
            found(Function {
                name,
                role: declared.role,
                address,
                len,
                declared: Some(declared),
            });
        }
    });
    let mut names = declared::Names::of(module);
    names.take_each(|name| exported(name), &mut found);
    if names.are_left()
        && let Some(table) = file.get_or_insert_with(|| FileSymbols::of(module))
    {
        table.each_function(module, |text, place| names.take(text, place, &mut found));
    }
    if has_malloc {
        operators(module, |function| found(*function));
    }
    let mut process = [(0, 0); PROCESS.len()];
    if exported("__libc_start_main").is_some() {
        for (place, (name, _)) in process.iter_mut().zip(&PROCESS) {
            *place = exported(name).unwrap_or_default();
        }
    } else if module.is_static
        && let Some(table) = file.get_or_insert_with(|| FileSymbols::of(module))
    {
        table.find_all(module, &PROCESS, &mut process, false);
    }
    let has_inner_fork = PROCESS[0].0 == "_Fork" && process[0].0 != 0;
    for ((name, role), (address, len)) in PROCESS.iter().zip(process) {
        if address != 0 && (*name != "fork" || !has_inner_fork) {
            found(Function {
                name,
                role: *role,
                address,
                len,
                declared: None,
            });
        }
    }
}

/// Calls `found` for each of C++'s operators that `module` exports, or has for all of a statically linked program.
pub(crate) fn operators(module: &Module, mut found: impl FnMut(&Function)) {
    let mut places = [(0, 0); OPERATORS.len()];
    if module.is_static {
        if let Some(table) = FileSymbols::of(module) {
            table.find_all(module, &OPERATORS, &mut places, false);
        }
    } else if let Some(symbols) = Symbols::of(module) {
        for (place, (name, _)) in places.iter_mut().zip(&OPERATORS) {
            *place = symbols.find(name).unwrap_or_default();
        }
    }
    for ((name, role), (address, len)) in OPERATORS.iter().zip(places) {
        if address != 0 {
            found(&Function {
                name,
                role: *role,
                address,
                len,
                declared: None,
            });
        }
    }
}

/// Where the symbol of `module`'s procedure linkage relocation `number` will be bound: the first loaded object's that
/// exports the name (System V gABI, shared object dependencies).
pub(crate) fn bound_later(module: &Module, number: u32) -> Option<u64> {
    let symbols = Symbols::of(module)?;
    let name = symbols.name_of_relocation(number)?;
    let mut first = None;
    modules::each(|module| {
        if first.is_none() && module.is_in_base_namespace {
            first = exported(module, name);
        }
    });
    first.map(|(address, _)| address)
}

/// Address and length of the function `name`, if `module` exports it.
pub(crate) fn exported(module: &Module, name: &str) -> Option<(u64, u64)> {
    Symbols::of(module)?.find(name)
}

/// Address of the variable `name`, if `module` exports it, or has it for all of a statically linked program.
pub(crate) fn variable(module: &Module, name: &str) -> Option<u64> {
    if module.is_static {
        return FileSymbols::of(module)?.variable(module, name);
    }
    let (address, _) = Symbols::of(module)?.find_kind(name, STT_OBJECT)?;
    Some(address)
}

/// Whether the object is a C library.
pub(crate) fn is_libc(module: &Module) -> bool {
    Symbols::of(module).is_some_and(|symbols| symbols.find("__libc_start_main").is_some())
}

/// Whether the object brings an allocator that checks addresses of its own (AddressSanitizer and kin):
/// the process is better left alone.
pub(crate) fn is_sanitized(module: &Module) -> bool {
    Symbols::of(module).is_some_and(|symbols| {
        [
            "__asan_init",
            "__tsan_init",
            "__hwasan_init",
            "__msan_init",
            "__lsan_init",
        ]
        .iter()
        .any(|name| symbols.find(name).is_some())
    })
}

/// A symbol (ELF-64).
#[repr(C)]
#[derive(Clone, Copy)]
struct Symbol {
    name: u32,
    info: u8,
    other: u8,
    section: u16,
    value: u64,
    len: u64,
}

const STT_OBJECT: u8 = 1;
const STT_FUNC: u8 = 2;

impl Symbol {
    fn kind(&self) -> u8 {
        self.info & 15
    }

    fn is_defined(&self) -> bool {
        self.section != 0 && self.value != 0
    }

    /// Seen by no other file of those that were linked.
    fn is_local(&self) -> bool {
        const STB_LOCAL: u8 = 0;
        self.info >> 4 == STB_LOCAL
    }

    fn is_function(&self) -> bool {
        self.is_defined() && self.kind() == STT_FUNC
    }
}

/// The dynamic symbols of a loaded object.
struct Symbols {
    bias: u64,
    symbols: *const Symbol,
    strings: *const u8,
    gnu_hash: *const u32,
    hash: *const u32,
    /// The relocations of its procedure linkage table, and their bytes.
    linkage: (*const Relocation, u64),
}

/// A relocation with an addend (ELF-64).
#[repr(C)]
#[derive(Clone, Copy)]
struct Relocation {
    at: u64,
    info: u64,
    addend: i64,
}

impl Symbols {
    fn of(module: &Module) -> Option<Self> {
        const DT_HASH: u64 = 4;
        const DT_STRTAB: u64 = 5;
        const DT_SYMTAB: u64 = 6;
        const DT_GNU_HASH: u64 = 0x6fff_fef5;
        const DT_JMPREL: u64 = 23;
        const DT_PLTRELSZ: u64 = 2;
        let mut symbols = Self {
            bias: module.bias,
            symbols: core::ptr::null(),
            strings: core::ptr::null(),
            gnu_hash: core::ptr::null(),
            hash: core::ptr::null(),
            linkage: (core::ptr::null(), 0),
        };
        let mut entry = module.dynamic;
        if entry.is_null() {
            return None;
        }
        loop {
            // SAFETY: the dynamic section ends with a DT_NULL entry.
            let [tag, value] = unsafe { *entry };
            // glibc turns these into addresses, musl and the vDSO's do not.
            let in_module = (module.start..module.end).contains(&value);
            let address = if in_module {
                value
            } else {
                value.wrapping_add(module.bias)
            };
            match tag {
                0 => break,
                DT_HASH => symbols.hash = address as *const u32,
                DT_GNU_HASH => symbols.gnu_hash = address as *const u32,
                DT_STRTAB => symbols.strings = address as *const u8,
                DT_SYMTAB => symbols.symbols = address as *const Symbol,
                DT_JMPREL => symbols.linkage.0 = address as *const Relocation,
                DT_PLTRELSZ => symbols.linkage.1 = value,
                _ => {}
            }
            entry = entry.wrapping_add(1);
        }
        let complete = !symbols.symbols.is_null() && !symbols.strings.is_null();
        complete.then_some(symbols)
    }

    /// Address and length of the function `name`, if the object defines it.
    fn find(&self, name: &str) -> Option<(u64, u64)> {
        self.find_kind(name, STT_FUNC)
    }

    fn find_kind(&self, name: &str, kind: u8) -> Option<(u64, u64)> {
        let symbol = if self.gnu_hash.is_null() {
            self.find_sysv(name)
        } else {
            self.find_gnu(name)
        };
        let symbol = symbol.filter(|symbol| symbol.kind() == kind)?;
        Some((symbol.value.wrapping_add(self.bias), symbol.len))
    }

    /// The name of the symbol that relocation `number` of the procedure linkage table binds.
    fn name_of_relocation(&self, number: u32) -> Option<&'static str> {
        let (first, len) = self.linkage;
        let there = !first.is_null() && u64::from(number) < len / size_of::<Relocation>() as u64;
        // SAFETY: a relocation of the object's own table, a symbol that it names, a C string in its string table.
        let name = there.then(|| unsafe {
            let symbol = ((*first.add(number as usize)).info >> 32) as usize;
            let name = (*self.symbols.add(symbol)).name as usize;
            CStr::from_ptr(self.strings.add(name).cast()).to_str()
        })?;
        name.ok()
    }

    /// The symbol at `at` if it is the function or variable `name`.
    fn matching(&self, at: u32, name: &str) -> Option<Symbol> {
        // SAFETY: `at` comes from the object's own hash table.
        let symbol = unsafe { *self.symbols.add(at as usize) };
        // SAFETY: names are C strings in the string table.
        let same = symbol.is_defined()
            && unsafe { is_string(self.strings.add(symbol.name as usize), name) };
        same.then_some(symbol)
    }

    fn find_gnu(&self, name: &str) -> Option<Symbol> {
        // SAFETY: the layout of DT_GNU_HASH: four words, the Bloom filter, buckets, chains.
        unsafe {
            let [buckets, first, bloom_len, shift] = *self.gnu_hash.cast::<[u32; 4]>();
            let hash = name.bytes().fold(5381u32, |hash, byte| {
                hash.wrapping_mul(33).wrapping_add(byte.into())
            });
            let bloom = self.gnu_hash.add(4).cast::<u64>();
            let filter = *bloom.add((hash / 64) as usize & (bloom_len as usize).checked_sub(1)?);
            let mask = 1u64 << (hash % 64) | 1u64 << ((hash >> shift) % 64);
            if filter & mask != mask || buckets == 0 {
                return None;
            }
            let table = bloom.add(bloom_len as usize).cast::<u32>();
            let chains = table.add(buckets as usize);
            let mut at = *table.add((hash % buckets) as usize);
            if at < first {
                return None;
            }
            loop {
                let chain = *chains.add((at - first) as usize);
                if chain | 1 == hash | 1
                    && let Some(symbol) = self.matching(at, name)
                {
                    return Some(symbol);
                }
                if chain & 1 != 0 {
                    return None;
                }
                at += 1;
            }
        }
    }

    fn find_sysv(&self, name: &str) -> Option<Symbol> {
        if self.hash.is_null() {
            return None;
        }
        let hash = name.bytes().fold(0u32, |hash, byte| {
            let hash = (hash << 4).wrapping_add(byte.into());
            let high = hash & 0xf000_0000;
            (hash ^ high >> 24) & !high
        });
        // SAFETY: the layout of DT_HASH: two counts, buckets, chains.
        unsafe {
            let [buckets, chains_len] = *self.hash.cast::<[u32; 2]>();
            if buckets == 0 {
                return None;
            }
            let table = self.hash.add(2);
            let chains = table.add(buckets as usize);
            let mut at = *table.add((hash % buckets) as usize);
            for _ in 0..chains_len {
                if at == 0 {
                    return None;
                }
                if let Some(symbol) = self.matching(at, name) {
                    return Some(symbol);
                }
                at = *chains.add(at as usize);
            }
        }
        None
    }
}

/// # Safety
/// `at` points to a NUL-terminated string.
unsafe fn is_string(at: *const u8, name: &str) -> bool {
    // SAFETY: compares up to the first difference, at the NUL at the latest.
    let same = |(offset, byte): (usize, u8)| unsafe { *at.add(offset) } == byte;
    name.bytes().chain([0]).enumerate().all(same)
}

/// The symbol table of an object's file.
struct FileSymbols {
    symbols: &'static [Symbol],
    strings: &'static [u8],
    /// Both lie in it.
    _file: ElfFile,
}

impl FileSymbols {
    fn of(module: &Module) -> Option<Self> {
        const SHT_SYMTAB: u32 = 2;
        let file = ElfFile::of(module)?;
        let section = file.section_of_type(SHT_SYMTAB)?;
        let symbols = file.contents(section)?;
        let strings = file.contents(file.linked(section)?)?;
        if symbols.as_ptr().align_offset(align_of::<Symbol>()) != 0 {
            return None;
        }
        let count = symbols.len() / size_of::<Symbol>();
        // SAFETY: in bounds, aligned, and any bytes make a symbol.
        let symbols = unsafe { core::slice::from_raw_parts(symbols.as_ptr().cast(), count) };
        Some(Self {
            symbols,
            strings,
            _file: file,
        })
    }

    /// Calls `each` with the name, up to the end of the table, and address and length of every function.
    fn each_function(&self, module: &Module, mut each: impl FnMut(&[u8], (u64, u64))) {
        for symbol in self.symbols.iter().filter(|symbol| symbol.is_function()) {
            let address = symbol.value.wrapping_add(module.bias);
            if let Some(text) = self.strings.get(symbol.name as usize..)
                && (module.text.0..module.text.1).contains(&address)
            {
                each(text, (address, symbol.len));
            }
        }
    }

    /// Address of the variable that all of the program means by `name`.
    fn variable(&self, module: &Module, name: &str) -> Option<u64> {
        let is_it = |symbol: &&Symbol| {
            let text = self.strings.get(symbol.name as usize..);
            symbol.is_defined()
                && symbol.kind() == STT_OBJECT
                && !symbol.is_local()
                && text.is_some_and(|text| is_name(text, name))
        };
        let symbol = self.symbols.iter().find(is_it)?;
        let address = symbol.value.wrapping_add(module.bias);
        module.holds(address).then_some(address)
    }

    /// Address and length of each of `names` that is defined. What is private to one of the files that were linked counts only if it may,
    /// and if nothing else has the name.
    fn find_all(
        &self,
        module: &Module,
        names: &[Named],
        places: &mut Places,
        may_be_private: bool,
    ) {
        for symbol in self.symbols.iter().filter(|symbol| symbol.is_function()) {
            let Some(text) = self.strings.get(symbol.name as usize..) else {
                continue;
            };
            if let Some(at) = names.iter().position(|(name, _)| is_name(text, name)) {
                let address = symbol.value.wrapping_add(module.bias);
                let counts = !symbol.is_local() || (may_be_private && places[at].0 == 0);
                if counts && (module.text.0..module.text.1).contains(&address) {
                    places[at] = (address, symbol.len);
                }
            }
        }
    }
}

/// Whether the string at the start of `text` is `name`.
fn is_name(text: &[u8], name: &str) -> bool {
    text.starts_with(name.as_bytes()) && text.get(name.len()) == Some(&0)
}
