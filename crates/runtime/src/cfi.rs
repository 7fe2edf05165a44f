//! *How does the walk leave the frame of this return address?*
//!
//! A small evaluator of call frame information (DWARF 5, §6.4; LSB Core, "Exception Frames"): it finds the
//! entry of a return address through a sorted table ([`crate::unwind_table`]) and executes the instructions up to the
//! call, keeping just two things: the rule for the canonical frame address and where `rbp` was saved. Everything
//! else (expressions, other registers) makes the frame a leaf. Evaluated once per node of the origin tree.

#![allow(unsafe_code)] // Reads the unwind tables of loaded objects.

use crate::modules::Module;
use pointee_index::origins::Rule;

/// DWARF numbers of the registers (System V ABI, AMD64, figure 3.36).
const RBP: u64 = 6;
const RSP: u64 = 7;
/// Column of the return address (System V psABI for x86-64, figure 3.36).
const RETURN_ADDRESS: u64 = 16;
/// Deepest `DW_CFA_remember_state` met in practice is 2.
const REMEMBERED: usize = 8;

/// Bytes of one mapped segment; every read is checked against its end.
#[derive(Clone, Copy)]
struct Cursor {
    at: u64,
    end: u64,
}

impl Cursor {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let next = self
            .at
            .checked_add(N as u64)
            .filter(|next| *next <= self.end)?;
        // SAFETY: `[at, next)` lies in a mapped, readable segment of a loaded object.
        let bytes = unsafe { core::ptr::read_unaligned(self.at as *const [u8; N]) };
        self.at = next;
        Some(bytes)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take::<1>().map(|bytes| bytes[0])
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn uleb(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let byte = self.u8()?;
            value |= u64::from(byte & 0x7f).checked_shl(shift)?;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn sleb(&mut self) -> Option<i64> {
        let mut value = 0i64;
        for shift in (0..63).step_by(7) {
            let byte = self.u8()?;
            value |= i64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                let unused = 64 - 7 - shift;
                return Some(value << unused >> unused);
            }
        }
        None
    }

    fn skip(&mut self, bytes: u64) -> Option<()> {
        self.at = self.at.checked_add(bytes).filter(|at| *at <= self.end)?;
        Some(())
    }

    /// A pointer in the encoding `encoding` (`DW_EH_PE_*`), relative to its own place or to `data`.
    fn pointer(&mut self, encoding: u8, data: u64) -> Option<u64> {
        let here = self.at;
        let value = match encoding & 0x0f {
            0x00 | 0x04 | 0x0c => u64::from_le_bytes(self.take()?),
            0x02 => u64::from(u16::from_le_bytes(self.take()?)),
            0x03 => u64::from(self.u32()?),
            0x0a => i64::from(i16::from_le_bytes(self.take()?)) as u64,
            0x0b => i64::from(self.u32()? as i32) as u64,
            0x01 => self.uleb()?,
            0x09 => self.sleb()? as u64,
            _ => return None,
        };
        match encoding & 0x70 {
            0x00 => Some(value),
            0x10 => Some(value.wrapping_add(here)),
            0x30 => Some(value.wrapping_add(data)),
            _ => None,
        }
    }
}

/// What a CIE says.
struct Common {
    code_alignment: u64,
    data_alignment: i64,
    pointer_encoding: u8,
    augmented: bool,
    signal_frame: bool,
    instructions: Cursor,
}

/// The state the instructions change.
#[derive(Clone, Copy)]
struct Row {
    cfa_register: u64,
    cfa_offset: i64,
    /// `None`: somewhere we cannot say.
    rbp: Option<i64>,
    /// Whether the return address lies right below the CFA. Undefined in a thread's or the program's first function.
    returns: bool,
    computable: bool,
}

/// The rule of the frame whose call returns to `return_address`. `None` if there is none, or none
/// of the simple form.
pub(crate) fn rule(module: &Module, return_address: u64) -> Option<Rule> {
    // The call may be the last instruction of its function, or of a range with rules of its own.
    let pc = return_address.checked_sub(1)?;
    let entry = module.unwind_table()?.find(pc)?;
    if !module.holds(entry) {
        return None;
    }
    let mut fde = Cursor {
        at: entry,
        end: module.end,
    };
    let len = u64::from(fde.u32().filter(|len| *len != 0 && *len != u32::MAX)?);
    fde.end = fde.at.checked_add(len).filter(|end| *end <= module.end)?;
    let here = fde.at;
    let cie_distance = u64::from(fde.u32()?);
    let common = common(
        Cursor {
            at: here.checked_sub(cie_distance)?,
            end: module.end,
        },
        module,
    )?;
    let start = fde.pointer(common.pointer_encoding, 0)?;
    let range = fde.pointer(common.pointer_encoding & 0x0f, 0)?;
    if common.signal_frame || pc.checked_sub(start)? >= range {
        return None;
    }
    if common.augmented {
        let len = fde.uleb()?;
        fde.skip(len)?;
    }
    let initial = Row {
        cfa_register: RSP,
        cfa_offset: 8,
        rbp: Some(0),
        returns: true,
        computable: true,
    };
    let row = execute(
        &common,
        common.instructions,
        initial,
        initial,
        start,
        u64::MAX,
    )?;
    let row = execute(&common, fde, row, row, start, pc)?;
    if !row.computable || !row.returns || !matches!(row.cfa_register, RSP | RBP) {
        return None;
    }
    let offset = i32::try_from(row.cfa_offset).ok()?;
    let saved_rbp = i16::try_from(row.rbp?).ok()?;
    Some(Rule::new(row.cfa_register == RBP, offset, saved_rbp))
}

/// Where the rows of the `.eh_frame_hdr` `[start, end)` begin, and how many there are; `None` if they are of another form than linkers
/// write.
pub(crate) fn rows_of_header(start: u64, end: u64) -> Option<(u64, u64)> {
    let mut header = Cursor { at: start, end };
    let [version, frame_encoding, count_encoding, table_encoding] = header.take()?;
    const SDATA4_DATAREL: u8 = 0x3b;
    if version != 1 || table_encoding != SDATA4_DATAREL {
        return None;
    }
    header.pointer(frame_encoding, start)?;
    let count = header.pointer(count_encoding, start)?;
    Some((header.at, count))
}

/// Calls `each` with the first address of code and the address of the rules (FDE) of every entry of the `.eh_frame` `[start, end)` of
/// `module`.
pub(crate) fn each_entry(module: &Module, start: u64, end: u64, mut each: impl FnMut(u64, u64)) {
    let mut at = Cursor { at: start, end };
    while at.at < end {
        let entry = at.at;
        // Zero ends what one linked file brought.
        let Some(len) = at.u32().filter(|len| *len != u32::MAX) else {
            return;
        };
        let next = at.at + u64::from(len);
        let mut code = || {
            let here = at.at;
            let distance = u64::from(at.u32()?);
            if distance == 0 {
                return None;
            }
            let cie = here.checked_sub(distance)?;
            let common = common(
                Cursor {
                    at: cie,
                    end: module.end,
                },
                module,
            )?;
            at.pointer(common.pointer_encoding, 0)
        };
        if len != 0
            && let Some(code) = code()
        {
            each(code, entry);
        }
        if next > end {
            return;
        }
        at.at = next;
    }
}

fn common(mut cie: Cursor, module: &Module) -> Option<Common> {
    if !(module.start..module.end).contains(&cie.at) {
        return None;
    }
    let len = u64::from(cie.u32().filter(|len| *len != u32::MAX)?);
    cie.end = cie.at.checked_add(len).filter(|end| *end <= module.end)?;
    let id = cie.u32()?;
    let version = cie.u8()?;
    if id != 0 || !matches!(version, 1 | 3) {
        return None;
    }
    let mut augmentation = [0; 8];
    let mut letters = 0;
    loop {
        match cie.u8()? {
            0 => break,
            letter => *augmentation.get_mut(letters)? = letter,
        }
        letters += 1;
    }
    let code_alignment = cie.uleb()?;
    let data_alignment = cie.sleb()?;
    cie.uleb()?; // column of the return address
    let augmented = augmentation[0] == b'z';
    if letters != 0 && !augmented {
        return None;
    }
    let mut pointer_encoding = 0;
    let mut signal_frame = false;
    if augmented {
        let len = cie.uleb()?;
        let after = cie.at.checked_add(len)?;
        for letter in &augmentation[1..letters] {
            match letter {
                b'R' => pointer_encoding = cie.u8()?,
                b'P' => {
                    let encoding = cie.u8()?;
                    cie.pointer(encoding & 0x7f, 0)?;
                }
                b'L' => {
                    cie.u8()?;
                }
                b'S' => signal_frame = true,
                _ => return None,
            }
        }
        cie.at = after;
    }
    Some(Common {
        code_alignment,
        data_alignment,
        pointer_encoding,
        augmented,
        signal_frame,
        instructions: cie,
    })
}

/// Executes `code` until it has passed `pc`.
fn execute(
    common: &Common,
    mut code: Cursor,
    mut row: Row,
    initial: Row,
    start: u64,
    pc: u64,
) -> Option<Row> {
    let mut location = start;
    let mut stack = [row; REMEMBERED];
    let mut depth = 0;
    while code.at < code.end {
        let opcode = code.u8()?;
        let low = u64::from(opcode & 0x3f);
        let advance = match (opcode >> 6, opcode) {
            (1, _) => Some(low),
            (2, _) => {
                let offset = code.uleb()? as i64;
                saved(
                    &mut row,
                    low,
                    Some(offset.checked_mul(common.data_alignment)?),
                );
                None
            }
            (3, _) => {
                restored(&mut row, low, &initial);
                None
            }
            (_, 0x00) => None,
            (_, 0x01) => {
                location = code.pointer(common.pointer_encoding, 0)?;
                Some(0)
            }
            (_, 0x02) => Some(u64::from(code.u8()?)),
            (_, 0x03) => Some(u64::from(u16::from_le_bytes(code.take()?))),
            (_, 0x04) => Some(u64::from(code.u32()?)),
            (_, 0x05) => {
                let register = code.uleb()?;
                let offset = code.uleb()? as i64;
                saved(
                    &mut row,
                    register,
                    Some(offset.checked_mul(common.data_alignment)?),
                );
                None
            }
            (_, 0x06) => {
                let register = code.uleb()?;
                restored(&mut row, register, &initial);
                None
            }
            (_, 0x07) => {
                let register = code.uleb()?;
                saved(&mut row, register, None);
                None
            }
            (_, 0x08) => {
                let register = code.uleb()?;
                saved(&mut row, register, Some(0));
                None
            }
            (_, 0x09) => {
                let register = code.uleb()?;
                code.uleb()?;
                saved(&mut row, register, None);
                None
            }
            (_, 0x0a) => {
                *stack.get_mut(depth)? = row;
                depth += 1;
                None
            }
            (_, 0x0b) => {
                depth = depth.checked_sub(1)?;
                row = stack[depth];
                None
            }
            (_, 0x0c) => {
                row.cfa_register = code.uleb()?;
                row.cfa_offset = code.uleb()? as i64;
                row.computable = true;
                None
            }
            (_, 0x0d) => {
                row.cfa_register = code.uleb()?;
                None
            }
            (_, 0x0e) => {
                row.cfa_offset = code.uleb()? as i64;
                None
            }
            (_, 0x0f) => {
                let len = code.uleb()?;
                code.skip(len)?;
                row.computable = false;
                None
            }
            (_, 0x10 | 0x16) => {
                let register = code.uleb()?;
                let len = code.uleb()?;
                code.skip(len)?;
                saved(&mut row, register, None);
                None
            }
            (_, 0x11) => {
                let register = code.uleb()?;
                let offset = code.sleb()?;
                saved(
                    &mut row,
                    register,
                    Some(offset.checked_mul(common.data_alignment)?),
                );
                None
            }
            (_, 0x12) => {
                row.cfa_register = code.uleb()?;
                row.cfa_offset = code.sleb()?.checked_mul(common.data_alignment)?;
                row.computable = true;
                None
            }
            (_, 0x13) => {
                row.cfa_offset = code.sleb()?.checked_mul(common.data_alignment)?;
                None
            }
            (_, 0x2e) => {
                code.uleb()?; // size of outgoing arguments: does not move the CFA
                None
            }
            _ => return None,
        };
        if let Some(steps) = advance {
            location = location.wrapping_add(steps.wrapping_mul(common.code_alignment));
            if location > pc {
                return Some(row);
            }
        }
    }
    Some(row)
}

fn saved(row: &mut Row, register: u64, at: Option<i64>) {
    match register {
        RBP => row.rbp = at,
        RETURN_ADDRESS => row.returns = at == Some(-8),
        _ => {}
    }
}

fn restored(row: &mut Row, register: u64, initial: &Row) {
    match register {
        RBP => row.rbp = initial.rbp,
        RETURN_ADDRESS => row.returns = initial.returns,
        _ => {}
    }
}
