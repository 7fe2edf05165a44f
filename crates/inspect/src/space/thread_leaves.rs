//! *What of a thread lies in memory?* — its control block, its thread-local variables, its frames and their variables.

use super::chunks::word;
use super::layers::fold;
use super::leaf::{Kind, Leaf, What};
use super::leaves::{Space, overlaps};
use super::{Frame, Span};
use pointee_model::addr::RunAddr;
use pointee_model::image::{Image, LocalPlace, LocalRecord};

/// Local variables of one frame, at most: a damaged image may claim any number.
const MOST_LOCALS: usize = 10_000;

impl<'a> Space<'a> {
    /// Control blocks, thread-local variables, and what lies between those.
    pub(super) fn thread_areas(&self, window: Span) -> Vec<Leaf<'a>> {
        /// Bytes of glibc's `struct pthread`, which starts with the control block (0x900 since glibc 2.26, by libthread_db).
        const CONTROL: u64 = 0x900;
        let mut leaves = Vec::new();
        for (number, thread) in self.layout.threads.iter().enumerate() {
            if let Some(block) = thread.control_block {
                let end = block.plus(CONTROL);
                if overlaps(Span { start: block, end }, window) {
                    let what = What::ControlBlock { thread: number };
                    leaves.push(Leaf::new(block.0, end.0, Kind::Thread, what));
                }
            }
            for (object, span) in &thread.blocks {
                if overlaps(*span, window) {
                    self.thread_block(number, *object as usize, *span, &mut leaves);
                }
            }
        }
        leaves
    }

    fn thread_block(&self, thread: usize, object: usize, span: Span, leaves: &mut Vec<Leaf<'a>>) {
        let mut end = span.start.0;
        let mut add = |start: u64, end: u64, record| {
            let what = What::ThreadLocal {
                thread,
                object,
                record,
            };
            leaves.push(Leaf::new(start, end, Kind::ThreadLocal, what));
        };
        let variables = self.image(object).map_or(&[][..], Image::thread_locals);
        for variable in variables {
            let start = span.start.0.wrapping_add(variable.address);
            if variable.size == 0 || start < end || start >= span.end.0 {
                continue;
            }
            if start > end {
                add(end, start, None);
            }
            end = start.saturating_add(variable.size).min(span.end.0);
            add(start, end, Some(variable));
        }
        if end < span.end.0 {
            add(end, span.end.0, None);
        }
    }

    pub(super) fn frames(&self, window: Span) -> Vec<Leaf<'a>> {
        let mut leaves = Vec::new();
        for (thread, record) in self.layout.threads.iter().enumerate() {
            // Frames of one stack lie in order, but a signal's may lie elsewhere.
            for (number, frame) in record.frames.iter().enumerate() {
                if overlaps(frame.span, window) && frame.span.start < frame.span.end {
                    self.frame(thread, number, frame, &mut leaves);
                }
            }
        }
        leaves
    }

    fn frame(&self, thread: usize, number: usize, frame: &Frame, leaves: &mut Vec<Leaf<'a>>) {
        let mut parts = self.locals_in_memory(thread, number, frame);
        parts.sort_by_key(|leaf| (leaf.span.start, leaf.span.end));
        let saved: Vec<Leaf<'a>> = frame
            .saved
            .iter()
            .map(|(slot, register)| {
                let what = What::Saved {
                    thread,
                    frame: number,
                    register: *register,
                };
                Leaf::new(slot.0, slot.0.wrapping_add(8), Kind::Saved, what)
            })
            .collect();
        let mut fixed: Vec<Leaf<'a>> = parts.iter().chain(&saved).copied().collect();
        fixed.sort_by_key(|leaf| leaf.span.start);
        let carved = self.carved((thread, number), frame, &fixed);
        let what = What::Frame {
            thread,
            frame: number,
        };
        let whole = Leaf::new(frame.span.start.0, frame.span.end.0, Kind::Frame, what);
        let cut = fold(frame.span, &[parts, saved, carved], &mut |gap| {
            vec![(gap, Leaf { span: gap, ..whole })]
        });
        leaves.extend(cut.into_iter().map(|(seen, leaf)| match leaf.what {
            // A variable stays whole: the offset in it counts from its start.
            What::Local { .. } | What::Carved { .. } => leaf,
            _ => Leaf { span: seen, ..leaf },
        }));
    }

    /// The variables of a frame that lie in its memory now.
    fn locals_in_memory(&self, thread: usize, number: usize, frame: &Frame) -> Vec<Leaf<'a>> {
        let leaf = |(object, record, place): (usize, &'a LocalRecord, Place)| {
            let Place::Memory(start) = place else {
                return None;
            };
            let size = crate::describe::size_of_type(self.image(object)?, record.r#type)
                .filter(|size| *size != 0)?;
            let what = What::Local {
                thread,
                frame: number,
                object,
                record,
            };
            let leaf = Leaf::new(start.0, start.0.checked_add(size)?, Kind::Local, what);
            frame.span.holds(start).then_some(leaf)
        };
        self.locals(frame).into_iter().filter_map(leaf).collect()
    }

    /// The variables of a frame that lie in a register: object, variable, DWARF number.
    #[must_use]
    pub fn locals_in_registers(&self, frame: &Frame) -> Vec<(usize, &'a LocalRecord, u16)> {
        let in_register = |(object, record, place)| match place {
            Place::Register(number) => Some((object, record, number)),
            Place::Memory(_) => None,
        };
        self.locals(frame)
            .into_iter()
            .filter_map(in_register)
            .collect()
    }

    /// The variables of a frame and where they are now.
    pub(super) fn locals(&self, frame: &Frame) -> Vec<(usize, &'a LocalRecord, Place)> {
        let executing = frame.executing();
        let Some((object, record)) = self.layout.object_at(executing) else {
            return Vec::new();
        };
        let Some(image) = self.image(object) else {
            return Vec::new();
        };
        let register = |number: u16| frame.registers.get(usize::from(number)).copied().flatten();
        image
            .locals_at(record.bias.to_link(executing))
            .take(MOST_LOCALS)
            .filter_map(|local| {
                let place = match LocalPlace::from_byte(local.place) {
                    LocalPlace::Frame => {
                        Place::Memory(RunAddr(frame.span.end.0.wrapping_add_signed(local.offset)))
                    }
                    LocalPlace::Memory => {
                        let base = register(local.register)?;
                        Place::Memory(RunAddr(base.wrapping_add_signed(local.offset)))
                    }
                    LocalPlace::Behind => {
                        let base = match local.register {
                            LocalRecord::CFA => frame.span.end.0,
                            number => register(number)?,
                        };
                        let slot = base.wrapping_add_signed(local.offset);
                        Place::Memory(RunAddr(word(self.contents?, slot)?))
                    }
                    LocalPlace::Register => Place::Register(local.register),
                    LocalPlace::Value | LocalPlace::Unknown => return None,
                };
                Some((object, local, place))
            })
            .collect()
    }
}

/// Where a local variable is at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// In memory.
    Memory(RunAddr),
    /// In a register, by DWARF number.
    Register(u16),
}
