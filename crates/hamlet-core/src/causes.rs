//! An error told with its causes, in one line. It shortens nothing and cleans nothing: text of a peer
//! goes through [`one_line`](crate::rejection::one_line) as well.
//!
//! Invariant: what the text says already isn't said again.

use std::error::Error;

/// Most causes that are told; a chain can't be longer unless it is made to be.
const CAUSES_MAX: usize = 16;

/// The error and its causes, outermost first.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let causes = std::iter::successors(error.source(), |&cause| cause.source());
    for cause in causes.take(CAUSES_MAX) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Layer {
        #[error("the file is missing")]
        Bottom,
        #[error("can't start: {0}")]
        Saying(#[source] Box<Layer>),
        #[error("can't listen")]
        Silent(#[source] Box<Layer>),
    }

    #[test]
    fn each_cause_is_told_once_whether_or_not_the_error_above_says_it() {
        let bottom = || Box::new(Layer::Bottom);
        assert_eq!(with_causes(&Layer::Bottom), "the file is missing");
        assert_eq!(with_causes(&Layer::Saying(bottom())), "can't start: the file is missing");
        assert_eq!(with_causes(&Layer::Silent(bottom())), "can't listen: the file is missing");
        let three = Layer::Silent(Box::new(Layer::Saying(bottom())));
        assert_eq!(with_causes(&three), "can't listen: can't start: the file is missing");
        let endless = (0..100).fold(bottom(), |inner, _| Box::new(Layer::Silent(inner)));
        assert_eq!(with_causes(&*endless), "can't listen", "the same again is no news");
    }
}
