//! The Rust blocks of the documents, compiled as documentation tests: `cargo test --package mainstay-documents`.
//!
//! They are in a package of their own, since a published crate has no access to the files beside it.

#[cfg(doctest)]
mod documents {
    #[doc = include_str!("../README.md")]
    struct Readme;
    #[doc = include_str!("../README.zh-CN.md")]
    struct ReadmeInChinese;
    #[doc = include_str!("../crates/mainstay/README.md")]
    struct ReadmeOfTheLibrary;
    #[doc = include_str!("CLUSTER.md")]
    struct Cluster;
    #[doc = include_str!("guides/authentication.md")]
    struct Authentication;
    #[doc = include_str!("guides/broadcast.md")]
    struct Broadcast;
    #[doc = include_str!("guides/testing.md")]
    struct Testing;
    #[doc = include_str!("TESTING.md")]
    struct TestMyReconnect;
}
