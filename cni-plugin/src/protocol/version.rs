//! Versions of the CNI specification.
//!
//! Negotiation is plain membership: the specification has no ranges, and a runtime picks from the list of VERSION.

use super::{CniError, Code};

/// A version of the specification that this plugin speaks. Ordered by age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SpecVersion {
    /// 0.1.0: one address a family
    V0_1_0,
    /// 0.2.0
    V0_2_0,
    /// 0.3.0: interfaces, any number of addresses
    V0_3_0,
    /// 0.3.1
    V0_3_1,
    /// 0.4.0: CHECK
    V0_4_0,
    /// 1.0.0: addresses without a family mark
    V1_0_0,
    /// 1.1.0: GC, STATUS
    V1_1_0,
}

impl SpecVersion {
    /// All of them, oldest first.
    pub const ALL: [Self; 7] = [
        Self::V0_1_0,
        Self::V0_2_0,
        Self::V0_3_0,
        Self::V0_3_1,
        Self::V0_4_0,
        Self::V1_0_0,
        Self::V1_1_0,
    ];

    /// The newest: what an answer carries when the question's version is not known.
    pub const NEWEST: Self = Self::V1_1_0;

    /// What a configuration without `cniVersion` means, by the specification.
    pub const IMPLIED: &'static str = "0.1.0";

    /// Whether results of both versions have the same keys.
    pub fn same_layout(self, other: Self) -> bool {
        let layout = |version: Self| (version >= Self::V0_3_0, version >= Self::V1_0_0);
        layout(self) == layout(other)
    }

    /// The text form.
    pub const fn text(self) -> &'static str {
        match self {
            Self::V0_1_0 => "0.1.0",
            Self::V0_2_0 => "0.2.0",
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// The version with exactly this text.
    ///
    /// # Errors
    /// Code 1 with the list of what is supported.
    pub fn parse(text: &str) -> Result<Self, CniError> {
        let found = Self::ALL.into_iter().find(|version| version.text() == text);
        found.ok_or_else(|| {
            CniError::new(
                Code::IncompatibleVersion,
                format!("cniVersion {text:?} is not supported"),
            )
            .with(format!("supported: {}", supported().join(", ")))
        })
    }
}

/// The texts of all supported versions, oldest first.
pub fn supported() -> [&'static str; SpecVersion::ALL.len()] {
    SpecVersion::ALL.map(SpecVersion::text)
}

/// The answer to VERSION.
pub fn answer() -> String {
    serde_json::json!({
        "cniVersion": SpecVersion::NEWEST.text(),
        "supportedVersions": supported(),
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_texts_only() {
        for version in SpecVersion::ALL {
            assert_eq!(SpecVersion::parse(version.text()).unwrap(), version);
        }
        for text in ["", "0.1", "0.2.1", "1", "1.0", "v1.0.0", "1.1.0 ", "9.9.9"] {
            let error = SpecVersion::parse(text).unwrap_err();
            assert_eq!(error.code, Code::IncompatibleVersion);
            assert!(
                error
                    .details
                    .contains("0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0"),
                "{error}"
            );
        }
    }

    #[test]
    fn the_list_is_in_the_order_of_age() {
        assert!(SpecVersion::ALL.is_sorted());
        assert_eq!(
            answer(),
            r#"{"cniVersion":"1.1.0","supportedVersions":["0.1.0","0.2.0","0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}"#
        );
    }
}
