package coordinator

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/demiurge-platform/demiurge/shared/id"
)

// TestFirstAdminToken: it is made once, for its owner alone, and what is not one never opens the API.
func TestFirstAdminToken(t *testing.T) {
	path := filepath.Join(t.TempDir(), adminTokenFile)
	made, err := readOrMakeSecret(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if again, err := readOrMakeSecret(path); err != nil || again != made || len(made) != 64 {
		t.Errorf("%q is made, and then read as %q, %v", made, again, err)
	}
	for what, text := range map[string]string{
		"empty": "", "cut short": made[:40], "two": made + "\n" + id.Secret() + "\n", "not hexadecimal": strings.Repeat("changeme", 8) + "\n", "upper case": strings.ToUpper(made[:32]) + "AB" + made[34:],
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := readOrMakeSecret(path); err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "remove the file and start the coordinator again") {
			t.Errorf("%s: %q, %v", what, got, err)
		}
		if now, err := os.ReadFile(path); err != nil || string(now) != text {
			t.Errorf("%s: it was overwritten", what)
		}
	}
}
