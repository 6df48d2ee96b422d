//! Deadlines: a hashed timer wheel with slots of one millisecond.
//!
//! Setting and cancelling cost a few pointer writes; entries are linked through their own table, so a slot owns no memory
//! and what is cancelled is free at once. Time is an argument, in microseconds since the loop began.

const SLOTS: usize = 4096;
const SLOT_US: u64 = 1000;
const NONE: u32 = u32::MAX;

/// A timer that was set. It is spent when the timer fires or is cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timer {
    index: u32,
    generation: u32,
}

impl Timer {
    /// A timer that was never set.
    pub const NEVER: Self = Self {
        index: NONE,
        generation: 0,
    };
}

struct Node<T> {
    generation: u32,
    prev: u32,
    next: u32,
    slot: u32,
    tick: u64,
    value: Option<T>,
}

/// The wheel. Entries fire at or after their time, within a slot's length of the next turn.
pub struct Wheel<T> {
    heads: Vec<u32>,
    occupied: [u64; SLOTS / 64],
    nodes: Vec<Node<T>>,
    free: u32,
    /// The first tick that has not been looked at.
    cursor: u64,
    len: usize,
}

impl<T> Default for Wheel<T> {
    fn default() -> Self {
        Self {
            heads: vec![NONE; SLOTS],
            occupied: [0; SLOTS / 64],
            nodes: Vec::new(),
            free: NONE,
            cursor: 0,
            len: 0,
        }
    }
}

impl<T> Wheel<T> {
    /// Number of timers set.
    #[cfg(any(test, feature = "hostile"))]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Sets a timer for `at_us`.
    pub fn set(&mut self, at_us: u64, value: T) -> Timer {
        let tick = at_us.div_ceil(SLOT_US).max(self.cursor);
        let slot = (tick % SLOTS as u64) as u32;
        let head = self.heads[slot as usize];
        let index = if self.free == NONE {
            self.nodes.push(Node {
                generation: 0,
                prev: NONE,
                next: head,
                slot,
                tick,
                value: Some(value),
            });
            (self.nodes.len() - 1) as u32 // bounded by the in-flight caps
        } else {
            let index = self.free;
            let node = &mut self.nodes[index as usize];
            self.free = node.next;
            *node = Node {
                generation: node.generation,
                prev: NONE,
                next: head,
                slot,
                tick,
                value: Some(value),
            };
            index
        };
        if head != NONE {
            self.nodes[head as usize].prev = index;
        }
        self.heads[slot as usize] = index;
        self.occupied[slot as usize / 64] |= 1 << (slot % 64);
        self.len += 1;
        Timer {
            index,
            generation: self.nodes[index as usize].generation,
        }
    }

    /// Cancels a timer; one that has fired is left alone.
    pub fn cancel(&mut self, timer: Timer) -> Option<T> {
        let node = self.nodes.get(timer.index as usize)?;
        if node.generation != timer.generation || node.value.is_none() {
            None
        } else {
            self.unlink(timer.index)
        }
    }

    fn unlink(&mut self, index: u32) -> Option<T> {
        let node = &mut self.nodes[index as usize];
        let (prev, next, slot) = (node.prev, node.next, node.slot as usize);
        let value = node.value.take();
        node.generation = node.generation.wrapping_add(1);
        node.next = self.free;
        self.free = index;
        self.len -= 1;
        if next != NONE {
            self.nodes[next as usize].prev = prev;
        }
        if prev == NONE {
            self.heads[slot] = next;
            if next == NONE {
                self.occupied[slot / 64] &= !(1 << (slot % 64));
            }
        } else {
            self.nodes[prev as usize].next = next;
        }
        value
    }

    /// Moves what is due at `now_us` to `due`.
    pub fn advance(&mut self, now_us: u64, due: &mut Vec<T>) {
        let now = now_us / SLOT_US;
        if now < self.cursor {
            return;
        }
        if self.len > 0 {
            // A full turn looks at every slot once, however long the loop was away.
            let steps = (now - self.cursor + 1).min(SLOTS as u64);
            for tick in self.cursor..self.cursor + steps {
                let slot = (tick % SLOTS as u64) as usize;
                if self.occupied[slot / 64] & (1 << (slot % 64)) == 0 {
                    continue;
                }
                let mut index = self.heads[slot];
                while index != NONE {
                    let next = self.nodes[index as usize].next;
                    if self.nodes[index as usize].tick <= now {
                        due.extend(self.unlink(index));
                    }
                    index = next;
                }
            }
        }
        self.cursor = now + 1;
    }

    /// When to look again, in microseconds: no timer is due before. `None` while none is set.
    pub fn next_us(&self) -> Option<u64> {
        if self.len == 0 {
            return None;
        }
        let start = (self.cursor % SLOTS as u64) as usize;
        let mut word = start / 64;
        let mut bits = self.occupied[word] & (u64::MAX << (start % 64));
        for _ in 0..=SLOTS / 64 {
            if bits != 0 {
                let slot = word * 64 + bits.trailing_zeros() as usize;
                let ahead = (slot + SLOTS - start) % SLOTS;
                return Some((self.cursor + ahead as u64) * SLOT_US);
            }
            word = (word + 1) % (SLOTS / 64);
            bits = self.occupied[word];
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(wheel: &mut Wheel<u32>, now_us: u64) -> Vec<u32> {
        let mut out = Vec::new();
        wheel.advance(now_us, &mut out);
        out.sort_unstable();
        out
    }

    #[test]
    fn fires_at_or_after_its_time_and_once() {
        let mut wheel = Wheel::default();
        wheel.set(1500, 1);
        wheel.set(10_000, 2);
        assert!(due(&mut wheel, 1499).is_empty());
        assert_eq!(due(&mut wheel, 2000), [1]);
        assert_eq!(wheel.next_us(), Some(10_000));
        assert!(due(&mut wheel, 9_999).is_empty());
        assert_eq!(due(&mut wheel, 10_000), [2]);
        assert_eq!((wheel.len(), wheel.next_us()), (0, None));
    }

    #[test]
    fn further_than_one_turn() {
        let mut wheel = Wheel::default();
        wheel.set(30_000_000, 1);
        wheel.set(300_000_000, 2);
        assert!(due(&mut wheel, 29_999_000).is_empty());
        assert_eq!(due(&mut wheel, 30_000_000), [1]);
        assert_eq!(due(&mut wheel, 400_000_000), [2]);
    }

    #[test]
    fn cancelled_is_gone_and_its_place_is_used_again() {
        let mut wheel = Wheel::default();
        for round in 0..1000_u64 {
            let timers: Vec<_> = (0..100).map(|i| wheel.set(round * 1000 + 5_000_000 + i, 7)).collect();
            for timer in timers {
                assert_eq!(wheel.cancel(timer), Some(7));
                assert_eq!(wheel.cancel(timer), None);
            }
            assert!(due(&mut wheel, round * 1000).is_empty());
        }
        assert_eq!((wheel.len(), wheel.nodes.len()), (0, 100));
    }

    #[test]
    fn a_time_in_the_past_fires_at_the_next_turn() {
        let mut wheel = Wheel::default();
        assert!(due(&mut wheel, 50_000).is_empty());
        wheel.set(10, 1);
        let next = wheel.next_us().unwrap();
        assert_eq!(due(&mut wheel, next), [1]);
    }

    #[test]
    fn against_a_sorted_list() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut wheel = Wheel::default();
        let mut model: Vec<(u64, u32)> = Vec::new();
        let mut now = 0;
        for id in 0..20_000 {
            let at = now + random.u64(0..9_000_000);
            wheel.set(at, id);
            model.push((at, id));
            if id % 3 == 0 {
                now += random.u64(0..20_000);
                let fired = due(&mut wheel, now);
                let tick = now / SLOT_US;
                let mut expected: Vec<u32> = model
                    .iter()
                    .filter(|(at, _)| at.div_ceil(SLOT_US) <= tick)
                    .map(|(_, id)| *id)
                    .collect();
                model.retain(|(at, _)| at.div_ceil(SLOT_US) > tick);
                expected.sort_unstable();
                assert_eq!(fired, expected);
            }
        }
    }
}
