// The Go side of the benches: an owner and a consumer of v1alpha1 built like the original Go
// library, which the Go module proxy doesn't serve: a goroutine and a channel of 4,096 changes for
// each consumer, one message in flight, no log lines, on the current gRPC. It speaks to the bench
// like the ends in xtask/src/bench/ends: commands on standard input, JSON lines on standard output.
//
// It is no mesh and keeps nothing.

package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
)

type options struct {
	folder   string
	address  string
	services int
}

func main() {
	if len(os.Args) < 2 {
		fail(fmt.Errorf("usage: hamlet-bench owner|consumer --folder FOLDER"))
	}
	set := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	var o options
	set.StringVar(&o.folder, "folder", "", "where the certificates are")
	set.StringVar(&o.address, "address", "", "the owner's address")
	set.IntVar(&o.services, "services", 0, "how many services")
	if err := set.Parse(os.Args[2:]); err != nil {
		fail(err)
	}
	var err error
	switch os.Args[1] {
	case "owner":
		err = runOwner(o)
	case "consumer":
		err = runConsumer(o)
	default:
		err = fmt.Errorf("unknown: %s", os.Args[1])
	}
	if err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "the Go peer:", err)
	os.Exit(1)
}

// tell writes one line.
func tell(line any) {
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

func (o options) file(name string) string { return filepath.Join(o.folder, name) }

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
