// The consumer's program: prints what comes, or counts it. What goes over the wire is client.go's.

package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/golang/protobuf/proto"
)

// counts of what came, and when the first and the last did.
type counts struct {
	mutex       sync.Mutex
	of          map[string]int
	first, last time.Time
}

func (c *counts) add(operation string) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.of[operation]++
	c.last = time.Now()
	if c.first.IsZero() {
		c.first = c.last
	}
}

// report writes the counts; the rate is over the time between the first and the last.
func (c *counts) report() {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	total, seconds := 0, c.last.Sub(c.first).Seconds()
	more := fields{"seconds": seconds, "per_second": 0.0}
	for _, operation := range []string{"create", "update", "delete"} {
		more[operation] = c.of[operation]
		total += c.of[operation]
	}
	if seconds > 0 {
		more["per_second"] = float64(total) / seconds
	}
	event("count", more)
}

// printer is the observer.
type printer struct {
	counts    counts
	countOnly bool
	nack      string
}

func (p *printer) take(operation string, service *FederatedService) error {
	p.counts.add(operation)
	var refused error
	if p.nack != "" && strings.Contains(service.Id, p.nack) {
		refused = fmt.Errorf("refused because its id contains %q", p.nack)
	}
	if !p.countOnly {
		answer := "ack"
		if refused != nil {
			answer = "nack"
		}
		event(operation, fields{"key": service.Id, "service": service, "answer": answer, "bytes": proto.Size(service)})
	}
	return refused
}

func (p *printer) OnCreate(service *FederatedService) error { return p.take("create", service) }
func (p *printer) OnUpdate(service *FederatedService) error { return p.take("update", service) }
func (p *printer) OnDelete(service *FederatedService) error { return p.take("delete", service) }

func runConsumer(args []string) error {
	set := flag.NewFlagSet("consumer", flag.ExitOnError)
	dial := set.String("dial", "", "the owner's address, HOST:PORT")
	serverName := set.String("server-name", "", "name that the owner's certificate must have; empty: the host dialled")
	url := set.String("resource-url", resourceURL, "what to subscribe to")
	id := identityFlags(set)
	p := &printer{counts: counts{of: map[string]int{}}}
	set.StringVar(&p.nack, "nack", "", "answer services whose id contains this with a NACK")
	set.BoolVar(&p.countOnly, "count-only", false, "don't print services, only counts at the end")
	if err := set.Parse(args); err != nil {
		return err
	}
	pair, pool, err := id.load()
	if err != nil {
		return err
	}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer cancel()
	go func() {
		commands := bufio.NewScanner(os.Stdin)
		for commands.Scan() {
			switch commands.Text() {
			case "quit":
				cancel()
				return
			case "count":
				p.counts.report()
			default:
				event("error", fields{"command": commands.Text(), "message": "known: count, quit"})
			}
		}
		cancel()
	}()
	event("dialling", fields{"address": *dial})
	config := &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: pool, ServerName: *serverName}
	err = watch(ctx, *dial, config, *url, p)
	asked := ctx.Err() != nil
	p.counts.report()
	event("ended", fields{"asked": asked, "error": fmt.Sprint(err)})
	if !asked {
		return fmt.Errorf("the stream ended: %v", err)
	}
	return nil
}
