package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/demiurge-platform/demiurge/shared/sleep"
)

// bootPatience bounds the start and the end of systemd. Only a hang takes so long.
const bootPatience = 90 * time.Second

// Booted is a machine that systemd runs as its first process: with its own processes, control groups, devices and
// name, the programs of this machine in /usr, and empty directories beside them. What is written there is in memory,
// outlives the machine's power, and is gone with Close.
type Booted struct {
	*Machine

	keeper *exec.Cmd      // keeps the files; ends all and tidies up when its standard input ends
	alive  io.WriteCloser // standard input of the keeper, which ends with this process, however that ends
	wrong  *strings.Builder
	init   chan struct{} // closed when systemd has ended
}

// keep makes the files of a machine in $1, installs from $2, and keeps them and the control group $3 until its input
// ends. Where this machine keeps its control groups, and of which version, does not matter: version 2 can be mounted once
// more anywhere. Control groups of processes that are gone are those of keepers that were killed.
const keep = `set -e
mount -t tmpfs scratch /mnt
mkdir /mnt/groups /mnt/root /mnt/up /mnt/work
mount -t cgroup2 groups /mnt/groups
for old in /mnt/groups/` + prefix + `[0-9]*; do
	pid=${old##*/` + prefix + `}
	[ ! -d "$old" ] || [ -e "/proc/${pid%%-*}" ] || find "$old" -depth -type d -exec rmdir {} + || true
done
mkdir "/mnt/groups/$3"
mount -t tmpfs -o mode=0755 root /mnt/root
cd /mnt/root
mkdir -p boot dev etc/systemd/system home media mnt opt proc root run srv sys tmp usr var/log/journal
chmod 1777 tmp
for link in bin sbin lib lib32 lib64 libx32; do [ ! -L /$link ] || cp -P /$link .; done
mount -t overlay usr -o "lowerdir=$2/usr:/usr,upperdir=/mnt/up,workdir=/mnt/work" usr
for part in ld.so.cache ld.so.conf ld.so.conf.d alternatives ssl; do [ ! -e /etc/$part ] || cp -a /etc/$part etc/; done
cp usr/share/base-passwd/passwd.master etc/passwd
cp usr/share/base-passwd/group.master etc/group
ln -s ../usr/lib/os-release etc/os-release
echo "$1" >etc/hostname
printf '127.0.0.1 localhost\n' >etc/hosts
printf 'passwd: files\ngroup: files\nshadow: files\nhosts: files\n' >etc/nsswitch.conf
tr -d - </proc/sys/kernel/random/uuid >etc/machine-id
ln -s /usr/lib/systemd/system/multi-user.target etc/systemd/system/default.target
for unneeded in getty.target systemd-logind.service; do ln -s /dev/null etc/systemd/system/$unneeded; done
cp -a "$2/etc/." etc/
cd /
echo ready
trap '' INT TERM HUP
cat >/dev/null
for try in $(seq 1500); do # a process that is gone is counted for a moment yet
	[ -d "/mnt/groups/$3" ] || exit 0
	pids=$(find "/mnt/groups/$3" -name cgroup.procs -exec cat {} +) || true
	[ -z "$pids" ] || kill -KILL $pids || true
	find "/mnt/groups/$3" -depth -type d -exec rmdir {} + || sleep 0.02
done 2>/dev/null
echo "the control group $3 does not end" >&2
exit 1
`

// start becomes systemd in the files that a keeper keeps, in the network namespace $1 and the control group $2. It sees
// neither the devices of this machine nor its processes, and cannot change its kernel.
const start = `set -e
echo $$ >"/mnt/groups/$2/cgroup.procs"
exec env -i container=lab PATH=/usr/sbin:/usr/bin setpriv --pdeathsig KILL \
	nsenter "--net=/run/netns/$1" unshare --pid --fork --kill-child --mount --cgroup --uts --ipc sh -ec '
cd /mnt/root
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=0755 dev dev
for device in null zero full random urandom tty; do
	touch dev/$device
	mount --bind /dev/$device dev/$device
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts dev/pts
mount -t tmpfs -o mode=1777 shm dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mkdir -p .before
pivot_root . .before
umount -l .before
exec /usr/lib/systemd/systemd --show-status=no'
`

// Boot gives a host files of its own and lets systemd start it. installed is a directory like the root of a file system:
// what is in its etc and usr is on the machine.
func (h *Host) Boot(ctx context.Context, installed string) (*Booted, error) {
	b := &Booted{Machine: &Machine{Host: h, path: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"}, wrong: &strings.Builder{}}
	b.keeper = exec.Command("unshare", "--mount", "sh", "-c", keep, "keeper", h.Name, installed, b.group())
	b.keeper.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // what interrupts this process must not keep it from tidying up
	b.keeper.Stderr = b.wrong
	out, err := b.keeper.StdoutPipe()
	if err == nil {
		b.alive, err = b.keeper.StdinPipe()
	}
	if err == nil {
		err = b.keeper.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("cannot make machine %s: %w", h.Name, err)
	}
	h.net.machines = append(h.net.machines, b)
	if line, _ := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		return nil, errors.Join(fmt.Errorf("cannot give machine %s files of its own", h.Name), b.Close())
	}
	return b, b.Start(ctx)
}

// group is the name of the machine's control group. It begins with the id of this process.
func (b *Booted) group() string { return prefix + strconv.Itoa(os.Getpid()) + "-" + b.Name }

// Start switches the machine on, when it is off, and waits until systemd has started all that is enabled.
func (b *Booted) Start(ctx context.Context) error {
	if b.init != nil {
		select {
		case <-b.init:
		default:
			return nil
		}
	}
	keeper := strconv.Itoa(b.keeper.Process.Pid)
	cmd := exec.Command("nsenter", "--mount=/proc/"+keeper+"/ns/mnt", "sh", "-c", start, "start", b.namespace, b.group())
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // the keeper ends it when this process ends
	wrong := &strings.Builder{}
	cmd.Stdout, cmd.Stderr = wrong, wrong
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("cannot start systemd on %s: %w", b.Name, err)
	}
	ended := make(chan struct{})
	b.init = ended
	go func() { // ends with systemd, which ends with the keeper at the latest
		_ = cmd.Wait() // however it ends, the machine is off
		close(ended)
	}()
	return b.poll(ctx, "systemd to start", func() error {
		select {
		case <-ended:
			return permanent{fmt.Errorf("it has ended: %s", wrong)}
		default:
		}
		if err := b.find(cmd.Process.Pid); err != nil {
			return err
		}
		said, err := b.Shell(ctx, "systemctl is-system-running || true")
		if state := strings.TrimSpace(said); err == nil && state != "running" && state != "degraded" {
			err = fmt.Errorf("it says %q", state)
		}
		return err
	})
}

// permanent is the error of what will not become better.
type permanent struct{ error }

// poll asks until a condition holds.
func (b *Booted) poll(ctx context.Context, what string, holds func() error) error {
	ctx, cancel := context.WithTimeout(ctx, bootPatience)
	defer cancel()
	for {
		err := holds()
		if err == nil {
			return nil
		}
		if final := (permanent{}); errors.As(err, &final) || !sleep.For(ctx, 20*time.Millisecond) {
			return fmt.Errorf("machine %s waited in vain for %s: %w", b.Name, what, err)
		}
	}
}

// find finds the process of systemd, which is the only child of the one that was started.
func (b *Booted) find(starter int) error {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", starter))
	if err != nil {
		return fmt.Errorf("cannot look for systemd: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return errors.New("systemd does not run yet")
	}
	program, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil || filepath.Base(program) != "systemd" {
		return fmt.Errorf("systemd does not run yet, only %s", program)
	}
	b.pid, b.enter = pid, []string{"--all", "--root", "--wd"}
	return nil
}

// Shutdown switches the machine off in order, as its operator does: units that are to say something last can.
func (b *Booted) Shutdown(ctx context.Context) error {
	if _, err := b.Shell(ctx, "systemctl start --no-block --job-mode=replace-irreversibly poweroff.target"); err != nil {
		return err
	}
	return b.poll(ctx, "its end", func() error {
		select {
		case <-b.init:
			return nil
		default:
			return errors.New("systemd runs still")
		}
	})
}

// Close ends all that runs on the machine and removes its files.
func (b *Booted) Close() error {
	_ = b.alive.Close() // closed already: fine
	err := b.keeper.Wait()
	if err != nil || b.wrong.Len() > 0 {
		return fmt.Errorf("cannot remove machine %s: %w\n%s", b.Name, err, b.wrong)
	}
	return nil
}
