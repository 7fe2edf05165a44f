//! *Which bytes follow an opcode?*
//!
//! One letter per opcode, laid out like the opcode maps of the manuals (Intel SDM vol. 2,
//! appendix A; AMD APM vol. 3, appendix A): row = high nibble, column = low nibble. Only what
//! decides the length is told; whether a ModRM form is defined is not.
//!
//! ```text
//!   .  nothing                  m  ModRM                  M  ModRM + imm8
//!   b  imm8                     w  imm16                  z  imm16 with prefix 66, else imm32
//!   v  z, but imm64 with REX.W  Z  ModRM + z              e  imm16 + imm8 (enter)
//!   j  rel8                     J  rel32                  o  address of 8 bytes, 4 with prefix 67
//!   t  ModRM + imm8 if reg < 2  T  ModRM + z if reg < 2   r  ModRM that is always a register
//!   q  ModRM, + two imm8 with prefix 66 or F2 (SSE4a)
//!   p  prefix or escape, seen before the table            -  undefined in 64-bit mode
//! ```

/// The one-byte opcodes.
pub(super) const PRIMARY: [&[u8; 16]; 16] = [
    b"mmmmbz--mmmmbz-p",
    b"mmmmbz--mmmmbz--",
    b"mmmmbzp-mmmmbzp-",
    b"mmmmbzp-mmmmbzp-",
    b"pppppppppppppppp",
    b"................",
    b"--pmppppzZbM....",
    b"jjjjjjjjjjjjjjjj",
    b"MZ-Mmmmmmmmmmmmm",
    b"..........-.....",
    b"oooo....bz......",
    b"bbbbbbbbvvvvvvvv",
    b"MMw.ppMZe.w..b-.",
    b"mmmm---.mmmmmmmm",
    b"jjjjbbbbJJ-j....",
    b"p.pp..tT......mm",
];

/// The opcodes behind `0F`. The maps behind `0F 38` and `0F 3A` need no table: all of the first
/// are `m`, all of the second `M`.
pub(super) const AFTER_0F: [&[u8; 16]; 16] = [
    b"mmmm-.....-.-m.M",
    b"mmmmmmmmmmmmmmmm",
    b"rrrr----mmmmmmmm",
    b"......-.p-p-----",
    b"mmmmmmmmmmmmmmmm",
    b"mmmmmmmmmmmmmmmm",
    b"mmmmmmmmmmmmmmmm",
    b"MMMMmmm.qm--mmmm",
    b"JJJJJJJJJJJJJJJJ",
    b"mmmmmmmmmmmmmmmm",
    b"...mMmmm...mMmmm",
    b"mmmmmmmmmmMmmmmm",
    b"mmMmMMMm........",
    b"mmmmmmmmmmmmmmmm",
    b"mmmmmmmmmmmmmmmm",
    b"mmmmmmmmmmmmmmmm",
];

/// The opcodes of map 1 (`0F`) under a VEX or EVEX prefix.
pub(super) const VEX_0F: [&[u8; 16]; 16] = [
    b"mmmmmmmmmmmmmmmm",
    b"mmmmmmmmmmmmmmmm",
    b"mmmmmmmmmmmmmmmm",
    b"mmmmmmmmmmmmmmmm",
    b"mmmmmmmmmmmmmmmm",
    b"mmmmmmmmmmmmmmmm",
    b"mmmmmmmmmmmmmmmm",
    b"MMMMmmm.mmmmmmmm",
    b"mmmmmmmmmmmmmmmm",
    b"mmmmmmmmmmmmmmmm",
    b"mmmmmmmmmmmmmmmm",
    b"mmmmmmmmmmmmmmmm",
    b"mmMmMMMmmmmmmmmm",
    b"mmmmmmmmmmmmmmmm",
    b"mmmmmmmmmmmmmmmm",
    b"mmmmmmmmmmmmmmmm",
];

/// The letter of `opcode` in `table`.
pub(super) const fn letter(table: &[&[u8; 16]; 16], opcode: u8) -> u8 {
    table[(opcode >> 4) as usize][(opcode & 15) as usize]
}
