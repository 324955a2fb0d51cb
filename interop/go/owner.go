// The owner's program: a catalogue, commands on standard input, events on standard output. What
// goes over the wire is server.go's.

package main

import (
	"bufio"
	"crypto/tls"
	"flag"
	"fmt"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/golang/protobuf/proto"
)

// template says what the services look like.
type template struct {
	domain, san, address *string
	protocol             *string
	port                 *uint
	bytes                *int
}

// catalogue is what the owner offers, by id.
type catalogue struct {
	template
	mutex    sync.Mutex
	services map[string]*FederatedService
	versions map[string]int
}

// make builds a service whose encoding has at least the wanted size; the version makes each one differ.
func (c *catalogue) make(name string, version int) *FederatedService {
	service := &FederatedService{
		Name:        name,
		Description: fmt.Sprintf("version %07d", version),
		Fqdn:        name + "." + *c.domain,
		Id:          name + "." + *c.domain,
		San:         *c.san,
		Protocols:   strings.Split(*c.protocol, ","),
		Endpoints:   append((&FederatedService{}).Endpoints, newEndpoint(*c.address, uint32(*c.port))),
	}
	if missing := *c.bytes - proto.Size(service); missing > 0 {
		service.Description += strings.Repeat(".", missing)
	}
	return service
}

// put makes the next version of a service and keeps it.
func (c *catalogue) put(name string) *FederatedService {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.versions[name]++
	c.services[name] = c.make(name, c.versions[name])
	return c.services[name]
}

// remove takes a service out; nil if it isn't there.
func (c *catalogue) remove(name string) *FederatedService {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	service := c.services[name]
	delete(c.services, name)
	return service
}

// names in order.
func (c *catalogue) names() []string {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	names := make([]string, 0, len(c.services))
	for name := range c.services {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

// state is the full state in order of names, as a new subscription gets it.
func (c *catalogue) state() []*FederatedService {
	names := c.names()
	c.mutex.Lock()
	defer c.mutex.Unlock()
	all := make([]*FederatedService, 0, len(names))
	for _, name := range names {
		if service, found := c.services[name]; found {
			all = append(all, service)
		}
	}
	return all
}

func runOwner(args []string) error {
	set := flag.NewFlagSet("owner", flag.ExitOnError)
	listen := set.String("listen", "127.0.0.1:0", "where to listen")
	id := identityFlags(set)
	services := set.Int("services", 0, "services that exist from the start, svc-00000 and on")
	answers := set.Bool("answers", false, "print every answer")
	c := &catalogue{
		template: template{
			domain:   set.String("domain", "foreign.example", "the services' domain"),
			san:      set.String("san", "spiffe://foreign.example/gateway", "the services' identity"),
			address:  set.String("address", "127.0.0.1", "the services' endpoint: address"),
			protocol: set.String("protocol", "TCP", "the services' protocols, separated by commas"),
			port:     set.Uint("port", 7444, "the services' endpoint: port"),
			bytes:    set.Int("bytes", 0, "encoded size of a service; smaller ones are padded"),
		},
		services: map[string]*FederatedService{},
		versions: map[string]int{},
	}
	if err := set.Parse(args); err != nil {
		return err
	}
	pair, pool, err := id.load()
	if err != nil {
		return err
	}
	for i := 0; i < *services; i++ {
		c.put(fmt.Sprintf("svc-%05d", i))
	}
	config := &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert}
	s, err := newServer(*listen, config, c.state, *answers)
	if err != nil {
		return err
	}
	event("listening", fields{"address": s.Address()})
	go func() {
		if err := s.Serve(); err != nil {
			fail(err)
		}
	}()
	commands := bufio.NewScanner(os.Stdin)
	for commands.Scan() {
		words := strings.Fields(commands.Text())
		if len(words) == 1 && words[0] == "quit" {
			break
		}
		if err := c.command(s, words); err != nil {
			event("error", fields{"command": commands.Text(), "message": err.Error()})
		}
	}
	s.Stop()
	return commands.Err()
}

// command carries out one line of standard input.
func (c *catalogue) command(s server, words []string) error {
	switch {
	case len(words) == 2 && (words[0] == "create" || words[0] == "update"):
		publish := s.Create
		if words[0] == "update" {
			publish = s.Update
		}
		published(words[0], words[1], publish(c.put(words[1])))
	case len(words) == 2 && words[0] == "delete":
		service := c.remove(words[1])
		if service == nil {
			return fmt.Errorf("there is no service %s", words[1])
		}
		published("delete", words[1], s.Delete(service))
	case (len(words) == 2 || len(words) == 3) && words[0] == "bench":
		count, err := strconv.Atoi(words[1])
		if err != nil {
			return err
		}
		rate := 0.0
		if len(words) == 3 {
			if rate, err = strconv.ParseFloat(words[2], 64); err != nil {
				return err
			}
		}
		return c.bench(s, count, rate)
	default:
		return fmt.Errorf("known: create NAME, update NAME, delete NAME, bench COUNT [RATE], quit")
	}
	return nil
}

func published(operation, name string, err error) {
	more := fields{"operation": operation, "name": name, "error": ""}
	if err != nil {
		more["error"] = err.Error()
	}
	event("published", more)
}

// bench publishes updates round robin over all services; a rate of 0 doesn't pace.
func (c *catalogue) bench(s server, count int, rate float64) error {
	names := c.names()
	if len(names) == 0 {
		return fmt.Errorf("there are no services to update; start with --services")
	}
	failed, began := 0, time.Now()
	for i := 0; i < count; i++ {
		if rate > 0 {
			time.Sleep(time.Until(began.Add(time.Duration(float64(i) / rate * float64(time.Second)))))
		}
		if s.Update(c.put(names[i%len(names)])) != nil {
			failed++
		}
	}
	seconds := time.Since(began).Seconds()
	event("bench", fields{"updates": count, "failed": failed, "seconds": seconds, "per_second": float64(count) / seconds})
	return nil
}
