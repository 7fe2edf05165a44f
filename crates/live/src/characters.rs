//! *How is text made without an allocator?* Characters on the stack, as many as there is room for.

/// Some characters; what does not fit is cut off.
pub(crate) struct Characters<const ROOM: usize> {
    bytes: [u8; ROOM],
    len: usize,
}

impl<const ROOM: usize> Characters<ROOM> {
    pub(crate) const fn new() -> Self {
        Self {
            bytes: [0; ROOM],
            len: 0,
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    pub(crate) fn put(&mut self, text: &[u8]) {
        let room = self.bytes[self.len..].iter_mut();
        self.len += room.zip(text).map(|(to, from)| *to = *from).count();
    }

    pub(crate) fn hexadecimal(&mut self, number: u64) {
        let digits = (64 - number.leading_zeros()).div_ceil(4).max(1);
        self.digits(number, digits);
    }

    /// Two digits.
    pub(crate) fn byte(&mut self, byte: u8) {
        self.digits(u64::from(byte), 2);
    }

    fn digits(&mut self, number: u64, digits: u32) {
        for place in (0..digits).rev() {
            self.put(&[b"0123456789abcdef"[(number >> (4 * place) & 15) as usize]]);
        }
    }

    pub(crate) fn decimal(&mut self, number: u32) {
        let mut unit = 1_000_000_000;
        while unit > 1 && number < unit {
            unit /= 10;
        }
        while unit > 0 {
            self.put(&[b'0' + (number / unit % 10) as u8]);
            unit /= 10;
        }
    }
}
