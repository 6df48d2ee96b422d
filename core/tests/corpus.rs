//! The committed corpus of the fuzz targets, run through the same functions as `make fuzz` runs them, without cargo-fuzz.

#[path = "../../fuzz/src/lib.rs"]
mod fuzz;

use std::fs;
use std::panic::catch_unwind;
use std::path::Path;

#[test]
fn the_corpus_breaks_no_promise() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    for (name, target) in fuzz::TARGETS {
        let folder = root.join(name);
        let mut files = 0;
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.expect("a readable folder").path();
            let bytes = fs::read(&path).expect("a readable file");
            assert!(
                catch_unwind(|| target(&bytes)).is_ok(),
                "{} breaks a promise",
                path.display()
            );
            // And cut short, at most a hundred times.
            for end in (0..bytes.len()).step_by(bytes.len() / 100 + 1) {
                assert!(
                    catch_unwind(|| target(&bytes[..end])).is_ok(),
                    "{} cut to {end} bytes",
                    path.display()
                );
            }
            files += 1;
        }
        println!("{name}: {files} files");
        assert!(files >= 3, "{} has only {files} files", folder.display());
    }
}
