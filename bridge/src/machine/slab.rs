//! A table of what is in flight, addressed by index and generation.
//!
//! A token names one entry for its lifetime only: a reply, a decision or a timer that arrives after its entry is gone, or
//! after the place has been given to another, finds nothing.

/// Names an entry: place and generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token {
    /// The place.
    pub index: u32,
    /// How often the place had been given away before.
    pub generation: u32,
}

struct Place<T> {
    generation: u32,
    value: Option<T>,
}

/// The table. Places are reused, the last one freed first, so that memory follows the most that was in flight at once.
pub struct Slab<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Slab<T> {
    /// Number of entries.
    pub fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Adds an entry.
    pub fn insert(&mut self, value: T) -> Token {
        if let Some(index) = self.free.pop() {
            let place = &mut self.places[index as usize];
            place.value = Some(value);
            return Token {
                index,
                generation: place.generation,
            };
        }
        let index = self.places.len() as u32; // bounded by the in-flight caps, far below 2^24
        self.places.push(Place {
            generation: 0,
            value: Some(value),
        });
        Token { index, generation: 0 }
    }

    /// The entry, if it still is the one that was named.
    pub fn get(&self, token: Token) -> Option<&T> {
        let place = self.places.get(token.index as usize)?;
        if place.generation == token.generation {
            place.value.as_ref()
        } else {
            None
        }
    }

    /// The entry, to change it.
    pub fn get_mut(&mut self, token: Token) -> Option<&mut T> {
        let place = self.places.get_mut(token.index as usize)?;
        if place.generation == token.generation {
            place.value.as_mut()
        } else {
            None
        }
    }

    /// Takes the entry out.
    pub fn remove(&mut self, token: Token) -> Option<T> {
        let place = self.places.get_mut(token.index as usize)?;
        if place.generation != token.generation {
            return None;
        }
        let value = place.value.take()?;
        place.generation = place.generation.wrapping_add(1);
        self.free.push(token.index);
        Some(value)
    }

    /// The tokens of all entries.
    pub fn tokens(&self) -> Vec<Token> {
        self.places
            .iter()
            .enumerate()
            .filter(|(_, place)| place.value.is_some())
            .map(|(index, place)| Token {
                index: index as u32,
                generation: place.generation,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_outlives_nothing() {
        let mut slab = Slab::default();
        let first = slab.insert("a");
        assert_eq!(slab.remove(first), Some("a"));
        assert_eq!(slab.remove(first), None);
        let second = slab.insert("b");
        assert_eq!(second.index, first.index);
        assert!(slab.get(first).is_none());
        assert_eq!(slab.get(second), Some(&"b"));
        assert_eq!((slab.len(), slab.tokens()), (1, vec![second]));
    }
}
