//! A filesystem under test: the union on some kind of layers, or a real directory (plain or a kernel mount).

use crate::case::{Name, Op};
use crate::reference::Outcome;
use crate::view::View;

/// What can be driven by operations and looked at.
pub(crate) trait System {
    /// Name for messages.
    fn name(&self) -> &'static str;
    /// Runs one operation.
    fn apply(&mut self, op: &Op) -> Outcome;
    /// Everything that shows. `pool`: names to ask for that may not be there.
    ///
    /// Errors: where the filesystem contradicts itself, in words.
    fn view(&mut self, pool: &[Name]) -> Result<View, String>;
}
