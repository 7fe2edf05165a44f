//! *Which image describes which module?*
//!
//! Images come in as bytes that somebody owns: a mapped file of the cache, a section of a snapshot.
//! Here they only stand beside the modules of one process, by module number.

use pointee_model::image::Image;
use std::sync::Arc;
use zerocopy::IntoBytes;

/// Bytes of an image, 8-byte aligned, whoever owns them.
pub type ImageBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// The images of one process; the number of a module is its place.
#[derive(Clone, Default)]
pub struct Images {
    by_module: Vec<Option<ImageBytes>>,
}

impl std::fmt::Debug for Images {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let present = self.by_module.iter().flatten().count();
        write!(f, "Images({present} of {})", self.by_module.len())
    }
}

impl Images {
    /// One entry a module, `None` where there is no image.
    #[must_use]
    pub fn new(by_module: Vec<Option<ImageBytes>>) -> Self {
        Self { by_module }
    }

    /// The bytes for module `number`.
    #[must_use]
    pub fn bytes(&self, number: u32) -> Option<&ImageBytes> {
        self.by_module.get(number as usize)?.as_ref()
    }

    /// Views of all of them; an image that is damaged is left out.
    #[must_use]
    pub fn views(&self) -> Vec<Option<Image<'_>>> {
        self.by_module.iter().map(view).collect()
    }
}

fn view(bytes: &Option<ImageBytes>) -> Option<Image<'_>> {
    let bytes: &[u8] = (**bytes.as_ref()?).as_ref();
    Image::parse(bytes).ok()
}

/// A copy of bytes with the alignment that images need.
#[derive(Debug)]
pub struct AlignedBytes {
    words: Vec<u64>,
    len: usize,
}

impl AlignedBytes {
    /// Copies `bytes`.
    #[must_use]
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut words = vec![0u64; bytes.len().div_ceil(8)];
        words.as_mut_bytes()[..bytes.len()].copy_from_slice(bytes);
        Self {
            words,
            len: bytes.len(),
        }
    }
}

impl AsRef<[u8]> for AlignedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.words.as_bytes()[..self.len]
    }
}
