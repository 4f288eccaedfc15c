//! Learning-rate schedules. The SGD step itself is a backend operation.
