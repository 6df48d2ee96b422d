//! What `/metrics` shows, taken apart.

use std::collections::BTreeMap;

/// One scrape of a bridge.
#[derive(Debug)]
pub struct Scrape {
    /// Type by metric.
    pub types: BTreeMap<String, String>,
    /// Value by series, named as there: labels in order of their names.
    pub series: BTreeMap<String, f64>,
}

impl Scrape {
    /// # Panics
    /// When it is not in the text format, when a metric has not exactly one HELP and TYPE, or when a series comes twice.
    #[track_caller]
    pub fn of(text: &str) -> Self {
        let mut types = BTreeMap::new();
        let mut helps = BTreeMap::new();
        let mut series = BTreeMap::new();
        for line in text.lines() {
            if let Some(head) = line.strip_prefix("# TYPE ") {
                let (name, kind) = head.split_once(' ').expect(line);
                assert_eq!(types.insert(name.to_owned(), kind.to_owned()), None, "{line}: twice");
            } else if let Some(head) = line.strip_prefix("# HELP ") {
                let (name, help) = head.split_once(' ').expect(line);
                assert_eq!(helps.insert(name.to_owned(), help.to_owned()), None, "{line}: twice");
            } else {
                let (name, value) = line.rsplit_once(' ').expect(line);
                let value = value.parse().expect(line);
                assert_eq!(series.insert(name.to_owned(), value), None, "{line}: twice");
            }
        }
        assert!(types.keys().eq(helps.keys()), "HELP and TYPE of each:\n{text}");
        let scrape = Self { types, series };
        for name in scrape.series.keys() {
            assert!(scrape.metric_of(name).is_some(), "{name} has no TYPE");
        }
        scrape
    }

    /// The metric that a series belongs to.
    pub fn metric_of(&self, series: &str) -> Option<&str> {
        let name = series.split('{').next()?;
        let parts = ["_bucket", "_count", "_sum"]
            .iter()
            .filter_map(|part| name.strip_suffix(part));
        std::iter::once(name)
            .chain(parts)
            .find_map(|name| self.types.get_key_value(name))
            .map(|(name, _)| name.as_str())
    }

    /// The series of one name, as labels and value.
    pub fn by_labels(&self, name: &str) -> BTreeMap<&str, f64> {
        let all = self.series.iter();
        all.filter_map(|(series, value)| {
            let labels = series.strip_prefix(name)?.strip_prefix('{')?.strip_suffix('}')?;
            Some((labels, *value))
        })
        .collect()
    }

    /// The same without those that are 0.
    pub fn counted(&self, name: &str) -> BTreeMap<&str, f64> {
        let mut all = self.by_labels(name);
        all.retain(|_, value| *value != 0.0);
        all
    }

    /// The value of one series.
    pub fn get(&self, series: &str) -> Option<f64> {
        self.series.get(series).copied()
    }
}
