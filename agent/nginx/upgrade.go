package nginx

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/procfs"
)

// bringUpToDate takes away what the version before has written and this one writes anew: routes, and
// generations that read them where they were. Certificates stay. The version is written last, by the
// caller, so that a crash only means that it is done again.
func bringUpToDate(f fsx.FS, l layout) error {
	b, err := f.ReadFile("nginx.version.read", l.version())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot read %s: %w", l.version(), err)
	}
	if before, err := l.parseVersion(b); err != nil || !before {
		return err
	}
	for _, path := range []string{l.journal(), l.pointer(), l.generations(), l.data + "/routes", l.data + "/slot"} {
		if err := f.RemoveAll("nginx.upgrade.remove", path); err != nil {
			return fmt.Errorf("cannot bring %s to format %s: %w", l.data, formatVersion, err)
		}
	}
	return nil
}

// recordVersion says which version of the layout the directory has now.
func recordVersion(f fsx.FS, l layout) error {
	return ensure(f, "nginx.version", l.version(), []byte(formatVersion+"\n"))
}

// forgetOtherBoot takes away the routes of an earlier boot of the machine, where the run directory has
// outlived it. They were never made durable, so any of them may be an old one, and the gateways that they
// lead to have ended with the machine. The directory itself stays: nginx may stand in it.
func forgetOtherBoot(f fsx.FS, l layout) error {
	now, err := procfs.Boot()
	if err != nil {
		return err
	}
	boot, err := f.ReadFile("nginx.boot.read", l.boot())
	if err == nil && string(boot) == now+"\n" {
		return nil
	}
	entries, err := f.ReadDir("nginx.boot.list", l.routes())
	if err != nil {
		return fmt.Errorf("cannot list routes: %w", err)
	}
	for _, entry := range entries {
		if err := f.RemoveAll("nginx.boot.remove", filepath.Join(l.routes(), entry.Name())); err != nil {
			return fmt.Errorf("cannot remove a route of an earlier boot: %w", err)
		}
	}
	if err := f.Write("nginx.boot.write", l.boot(), []byte(now+"\n"), 0o600); err != nil {
		return fmt.Errorf("cannot write %s: %w", l.boot(), err)
	}
	return nil
}
