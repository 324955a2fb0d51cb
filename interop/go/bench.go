// The two modes of the benches, `bench-owner` and `bench-consumer`: built like the original Go library
// (a goroutine and a channel of 4,096 changes for each consumer, one message in flight, no log
// lines), and with nothing for a message that the library doesn't do. They speak to the bench like
// the ends in xtask/src/bench/ends: commands on standard input, JSON lines on standard output.
//
// They are no mesh and keep nothing.

package main

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
)

// benchOptions are the flags of both modes.
type benchOptions struct {
	folder   string
	address  string
	services int
}

func benchFlags(mode string, args []string) (benchOptions, error) {
	set := flag.NewFlagSet(mode, flag.ExitOnError)
	var o benchOptions
	set.StringVar(&o.folder, "folder", "", "where the certificates are")
	set.StringVar(&o.address, "address", "", "the owner's address")
	set.IntVar(&o.services, "services", 0, "how many services")
	return o, set.Parse(args)
}

// say writes one line.
func say(line any) {
	text, err := json.Marshal(line)
	if err != nil {
		fail(err)
	}
	os.Stdout.Write(append(text, '\n'))
}

// commands hands each line's words and numbers to do, until the input ends.
func commands(do func(name string, numbers []int64) error) error {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) == 0 {
			continue
		}
		var numbers []int64
		for _, word := range words[1:] {
			number, err := strconv.ParseInt(word, 10, 64)
			if err != nil {
				return err
			}
			numbers = append(numbers, number)
		}
		if err := do(words[0], numbers); err != nil {
			return err
		}
	}
	return lines.Err()
}

// identity reads our certificate with its key, and the roots that the peer is verified against.
func (o benchOptions) identity(name, roots string) (tls.Certificate, *x509.CertPool, error) {
	file := func(name string) *string {
		path := filepath.Join(o.folder, name)
		return &path
	}
	return identity{cert: file(name + ".pem"), key: file(name + ".key"), ca: file(roots + ".pem")}.load()
}

// cost is what this process has cost so far; after a collection, so that garbage doesn't count.
func cost() map[string]uint64 {
	runtime.GC()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		fail(err)
	}
	var memory runtime.MemStats
	runtime.ReadMemStats(&memory)
	micros := func(t syscall.Timeval) uint64 { return uint64(t.Sec)*1_000_000 + uint64(t.Usec) }
	return map[string]uint64{
		"cpu_us": micros(usage.Utime) + micros(usage.Stime),
		"rss":    0,
		"peak":   uint64(usage.Maxrss) * 1024,
		// Goroutine stacks are memory of a consumer too.
		"heap": memory.HeapAlloc + memory.StackInuse,
	}
}
