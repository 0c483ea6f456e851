//! Names of files in the sub-folders of a checkpoint, and what they add to those of tensors.

/// What stands before the names of the tensors in a file: the path of its sub-folder, with the `/` after it.
pub(crate) fn prefix(file: &str) -> Option<&str> {
    file.rfind('/').map(|end| &file[..=end])
}

/// A path that stays below its folder, written in the one way: names with `/` between them.
pub(crate) fn is_inside(path: &str) -> bool {
    path.split('/').all(|name| !name.is_empty() && name != "." && name != ".." && !name.contains(['\\', '\0']))
}
