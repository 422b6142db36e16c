//! Things that are said once and not again until they change.

/// Remembers the last text, so that a state that lasts is one line in the log and not one a second.
#[derive(Debug, Default)]
pub struct Said(Option<String>);

impl Said {
    /// Whether `text` is news.
    pub fn is_news(&mut self, text: &str) -> bool {
        let news = self.0.as_deref() != Some(text);
        if news {
            self.0 = Some(text.to_owned());
        }
        news
    }

    /// Forgets it, because the state is over; answers whether there was one.
    pub fn clear(&mut self) -> bool {
        self.0.take().is_some()
    }
}

/// An error with all its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let more = next.to_string();
        // Some libraries repeat their cause in their own text.
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = next.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lasting_state_is_said_once() {
        let mut said = Said::default();
        assert!(said.is_news("etcd is away"));
        assert!(!said.is_news("etcd is away"));
        assert!(said.is_news("etcd refuses the password"));
        assert!(said.clear() && !said.clear());
        assert!(said.is_news("etcd is away"));
    }
}
