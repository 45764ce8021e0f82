"""Two hosts for benches and soaks: private instances with daemons that trust each other.

They are made with the commands that a user types, on loopback or in the namespaces of a lab. Of
what a command says only its documents are used; what is measured is read from /proc and from
consoles.
"""

import json
import os
import shutil
import socket
import subprocess
import time

PATIENCE = 120  # seconds that nothing here takes
DATA_PORTS = 20


class Failed(Exception):
    """Something went wrong; the text says what."""


def wait_for(what, done, patience=PATIENCE, pause=0.001):
    """What `done` answers, once it answers something true."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        result = done()
        if result:
            return result
        time.sleep(pause)
    raise Failed(f"not within {patience} s: {what}")


def free_ports(count):
    """The first of so many free UDP ports in a row on loopback, below the ephemeral ones."""
    for first in range(17420, 30000, count):
        held = []
        try:
            for port in range(first, first + count):
                held.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                held[-1].bind(("127.0.0.1", port))
            return first
        except OSError:
            pass
        finally:
            for one in held:
                one.close()
    raise Failed(f"no {count} free UDP ports between 17420 and 30000")


class Host:
    """One instance and its daemon. `enter` are the words that run a command on this host."""

    def __init__(self, command, name, home, address, port, enter=()):
        self.command, self.name, self.home, self.enter = command, name, home, list(enter)
        self.daemon = None
        self.log = None
        os.makedirs(os.path.join(home, "config"))
        with open(os.path.join(home, "config", "host.toml"), "w", encoding="utf-8") as config:
            config.write(
                f'listen = "{address}:{port}"\nadvertise = "{address}:{port}"\n'
                f'data_ports = "{port + 1}-{port + DATA_PORTS - 1}"\n'
            )

    def environment(self):
        return dict(os.environ, MIGRATE_HOME=self.home, NO_COLOR="1")

    def words(self, *words):
        return [*self.enter, self.command, *words]

    def run(self, *words, patience=PATIENCE):
        """The last document that a command prints."""
        done = subprocess.run(
            self.words(*words, "--json"), env=self.environment(), capture_output=True, text=True,
            timeout=patience, check=False,
        )
        if done.returncode:
            raise Failed(
                f"{self.name}: migrate {' '.join(words)}: exit {done.returncode}\n"
                f"{done.stdout}{done.stderr}"
            )
        lines = done.stdout.strip().splitlines()
        return json.loads(lines[-1]) if lines else {}

    def start_daemon(self):
        self.log = open(os.path.join(self.home, "daemon.log"), "a", encoding="utf-8")
        self.daemon = subprocess.Popen(
            self.words("daemon"), env=self.environment(), stdin=subprocess.DEVNULL,
            stdout=self.log, stderr=self.log,
        )

        def answers():
            if self.daemon.poll() is not None:
                with open(self.log.name, encoding="utf-8") as log:
                    raise Failed(f"{self.name}: the daemon ended: {log.read()[-2000:]}")
            try:
                return self.run("host", "show")
            except Failed:
                return None

        wait_for(f"{self.name}'s daemon", answers, patience=20, pause=0.05)

    def console(self, guest):
        return os.path.join(self.home, "run", "guests", guest, "console.sock")

    def guests(self):
        """Names of the guests that are there, as the directory of their sockets has them."""
        try:
            return sorted(os.listdir(os.path.join(self.home, "run", "guests")))
        except FileNotFoundError:
            return []

    def close(self):
        for guest in self.guests():
            subprocess.run(
                self.words("stop", guest, "--kill"), env=self.environment(), capture_output=True,
                timeout=PATIENCE, check=False,
            )
        if self.daemon and self.daemon.poll() is None:
            self.daemon.terminate()
            try:
                self.daemon.wait(20)
            except subprocess.TimeoutExpired:
                self.daemon.kill()
                self.daemon.wait()
        if self.log:
            self.log.close()


class Pair:
    """Two hosts that trust each other, in `where`, which is not removed."""

    def __init__(self, command, where, ends):
        """`ends`: for each host its address, its first port, and the words that enter it."""
        self.hosts = []
        for name, (address, port, enter) in zip(("host1", "host2"), ends):
            home = os.path.join(where, name)
            self.hosts.append(Host(command, name, home, address, port, enter))
        try:
            self.introduce()
        except BaseException:
            self.close()
            raise

    def introduce(self):
        one, two = self.hosts
        one.run("host", "init", "--name", one.name)
        one.start_daemon()
        line = one.run("host", "invite")["invitation"]
        two.run("host", "join", line, "--name", two.name)
        two.start_daemon()

    def close(self):
        for host in self.hosts:
            host.close()


def on_loopback(command, where):
    """Two hosts on this one."""
    first = free_ports(2 * DATA_PORTS)
    ends = [("127.0.0.1", port, ()) for port in (first, first + DATA_PORTS)]
    return Pair(command, where, ends)


class Lab:
    """A lab of `scripts/lab`, made for this and removed with it."""

    def __init__(self, root, name, *options):
        self.script = [os.path.join(root, "scripts", "lab"), "--name", name]
        self.name = name
        self.run("up", *options)

    def run(self, *words):
        done = subprocess.run(
            [*self.script, *words], capture_output=True, text=True, timeout=1200, check=False
        )
        if done.returncode:
            raise Failed(f"scripts/lab {' '.join(words)}: {done.stderr}")
        return done.stdout

    def enter(self, host):
        # Not `ip netns exec`: it would mount a /sys of its own, which nobody here needs.
        return ["nsenter", f"--net=/run/netns/{self.name}-{host}", "--"]

    def pair(self, command, where):
        ends = [("10.77.0.1", 7420, self.enter("a")), ("10.77.0.2", 7420, self.enter("b"))]
        return Pair(command, where, ends)

    def close(self):
        self.run("down")


# --- what processes use -----------------------------------------------------------------------


def usage(pid):
    """Descriptors, threads and resident KiB of a process; `None` if it is gone."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8") as file:
            lines = dict(line.split(":", 1) for line in file if ":" in line)
        return {
            "fds": len(os.listdir(f"/proc/{pid}/fd")),
            "threads": int(lines["Threads"]),
            "rss_kib": int(lines["VmRSS"].split()[0]),
        }
    except (OSError, KeyError):
        return None


def processes_of(home):
    """Processes that use an instance: some descriptor of theirs leads into it."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            fds = [f"/proc/{entry}/fd/{fd}" for fd in os.listdir(f"/proc/{entry}/fd")]
            if any(leads_into(fd, home) for fd in fds):
                found.append(int(entry))
        except OSError:
            pass
    return found


def leads_into(link, home):
    try:
        return os.readlink(link).startswith(home + "/")
    except OSError:
        return False


def built(root, variable="MIGRATE"):
    """The program to use: `MIGRATE`, or that of the release profile, which is built."""
    if variable not in os.environ:
        done = subprocess.run(
            ["cargo", "build", "--release", "--bin", "migrate"], cwd=root, check=False
        )
        if done.returncode:
            raise Failed("cargo build failed")
        target = os.environ.get("CARGO_TARGET_DIR", os.path.join(root, "target"))
        os.environ[variable] = os.path.join(target, "release", "migrate")
    path = os.path.abspath(os.environ[variable])
    if not shutil.which(path):
        raise Failed(f"{variable}={path} is no program")
    return path
