//! `ext_explain`: the decision told candidate by candidate, by the code that decides, without an effect.

use ext_registry_core::context::{Context, Empty};
use ext_registry_core::decide::{Explainer, Finding, Request, decide};
use pgrx::IntoDatum;

use super::preview::Onlooker;
use super::select::{Facts, facts};
use crate::image::Image;
use crate::{clock, registry, session, tuple};

fn findings<C: Context>(image: &Image, context: &C) -> Vec<Finding> {
    let random = session::with(session::Session::random);
    let request = Request {
        context,
        avoid: &[],
        now_us: clock::now_us(),
        random,
    };
    let mut explainer = Explainer::default();
    decide(&image.compiled, &request, &Onlooker::new(image), &mut explainer);
    explainer.0
}

crate::pg_function! {
    /// `ext_explain(extension_id, context)`.
    ext_explain, pg_finfo_ext_explain, |args| {
        let id = args.text(0).unwrap_or_default();
        let facts = facts(args.datum(1));
        let findings = match registry::get(args.function(), &id) {
            None => vec![Finding { stage: "lookup", candidate: id.clone().into_owned(), verdict: "refused", detail: "extension_not_found".to_owned() }],
            Some(image) => match &facts {
                Facts::None => findings(&image, &Empty),
                Facts::Object(object) => findings(&image, object),
            },
        };
        let rows = tuple::Rows::new(args, registry::row_type(args));
        for (step, finding) in findings.into_iter().enumerate() {
            rows.push(&[
                (step as i32 + 1).into_datum(),
                finding.stage.into_datum(),
                finding.candidate.into_datum(),
                finding.verdict.into_datum(),
                finding.detail.into_datum(),
            ]);
        }
        rows.finish(args)
    }
}
