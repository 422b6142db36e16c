//! Texts from elsewhere, cut to a length that may stand in a message.

/// The beginning of a text from elsewhere, so that a hostile record cannot flood a log.
pub(crate) fn shortened(text: &str) -> String {
    const LONGEST: usize = 120;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
