//go:build !failpoints

package failpoint

// Enabled tells whether this program was built with failpoints.
const Enabled = false

// Hit does nothing in a program built without the tag failpoints.
func Hit(string) {}

// Fail does nothing in a program built without the tag failpoints.
func Fail(string) error { return nil }
