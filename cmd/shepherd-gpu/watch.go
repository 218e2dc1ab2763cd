//go:build cgo

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/iterait/shepherd/gpu"
)

// watch prints every GPU's state at once and then at each interval, and Xid errors when
// they occur, until ctx ends or out cannot be written. If pci is not empty it opens only
// the GPUs at these addresses.
func watch(ctx context.Context, d *driver, interval time.Duration, pci []string, out io.Writer) error {
	var handles []*handle
	var err error
	if len(pci) > 0 {
		handles, err = d.handlesAt(pci)
	} else {
		handles, err = d.handles()
	}
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	events := make(chan gpu.Sample)
	var waiting sync.WaitGroup
	defer waiting.Wait()
	defer cancel()
	d.events(ctx, handles, events, &waiting)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		if len(handles) == 0 { // tell the reader that the driver answers
			if err := line(out, gpu.Sample{Time: time.Now()}); err != nil {
				return err
			}
		}
		for _, c := range handles {
			state := d.state(c)
			if err := line(out, gpu.Sample{Time: time.Now(), UUID: c.UUID, Index: c.Index, State: &state}); err != nil {
				return err
			}
		}
		for idle := true; idle; {
			select {
			case <-ctx.Done():
				return nil
			case s := <-events:
				if err := line(out, s); err != nil {
					return err
				}
			case <-tick.C:
				idle = false
			}
		}
	}
}

// events starts sending the Xid errors of the GPUs to out. Each GPU has an event set of
// its own, because every wait on the set of a lost GPU fails at once.
func (d *driver) events(ctx context.Context, handles []*handle, out chan<- gpu.Sample, waiting *sync.WaitGroup) {
	if !d.can("nvmlEventSetCreate") {
		return
	}
	for _, c := range handles {
		if c.device == nil {
			continue
		}
		set, ret := d.lib.EventSetCreate()
		if ret != nvml.SUCCESS {
			fmt.Fprintln(os.Stderr, (&driverError{"Xids are not reported", ret}).Error())
			return
		}
		if ret := c.device.RegisterEvents(nvml.EventTypeXidCriticalError, set); ret != nvml.SUCCESS {
			fmt.Fprintln(os.Stderr, (&driverError{fmt.Sprintf("Xids of GPU %d are not reported", c.Index), ret}).Error())
			set.Free()
			continue
		}
		waiting.Go(func() {
			defer set.Free()
			d.eventsOf(ctx, c, set, out)
		})
	}
}

// eventsOf sends the Xid errors of one GPU to out until ctx ends.
func (d *driver) eventsOf(ctx context.Context, c *handle, set nvml.EventSet, out chan<- gpu.Sample) {
	const timeout = 500 // milliseconds between checks of ctx
	for ctx.Err() == nil {
		event, ret := set.Wait(timeout)
		switch ret {
		case nvml.SUCCESS:
		case nvml.ERROR_TIMEOUT:
			continue
		default: // the GPU is lost, which its state also reports
			select {
			case <-ctx.Done():
			case <-time.After(timeout * time.Millisecond):
			}
			continue
		}
		xid := gpu.Xid{Code: event.EventData, MIG: c.instances[[2]int{int(event.GpuInstanceId), int(event.ComputeInstanceId)}]}
		select {
		case out <- gpu.Sample{Time: time.Now(), UUID: c.UUID, Index: c.Index, Xid: &xid}:
		case <-ctx.Done():
		}
	}
}
