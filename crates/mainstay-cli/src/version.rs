//! The output of `mainstay --version`; `mainstay -V` prints its first line only.

/// The version, the commit that it was built from, the crate's features and the target. `build.rs` finds them.
pub(crate) const LONG: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    "\ncommit: ",
    env!("MAINSTAY_COMMIT"),
    "\nfeatures: ",
    env!("MAINSTAY_FEATURES"),
    "\ntarget: ",
    env!("MAINSTAY_TARGET"),
);
