//! A scale that is chosen for a whole tensor, or for one of its matrices.

/// Whose scale it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// The target's.
    Own,
    /// A new one.
    Fresh,
    /// The donor's, with all of its bytes.
    Donor,
}

/// A scale for a whole.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chosen {
    /// As it is stored.
    pub bits: u32,
    /// Whose it is.
    pub choice: Choice,
    /// Target, reference and donor have the same.
    pub shared: bool,
}

/// For each whole, by output.
pub(super) type Wholes = Vec<Vec<Chosen>>;
