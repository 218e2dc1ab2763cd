//go:build cgo

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/iterait/shepherd/gpu"
)

// watch prints every GPU's state at once and then at each interval, and Xids as
// they come, until the context ends or nobody reads any more.
func watch(ctx context.Context, d *driver, interval time.Duration, out io.Writer) error {
	cards, err := d.cards()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	events := make(chan gpu.Sample)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		d.events(ctx, cards, events)
	}()
	defer func() {
		cancel()
		<-ended
	}()
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		for _, c := range cards {
			if c.UUID == "" {
				continue // it was lost before it said who it is
			}
			state := d.state(c)
			if err := line(out, gpu.Sample{Time: time.Now(), UUID: c.UUID, State: &state}); err != nil {
				return err
			}
		}
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				return nil
			case s := <-events:
				if err := line(out, s); err != nil {
					return err
				}
			case <-tick.C:
				waiting = false
			}
		}
	}
}

// events hands over the Xids that the driver reports.
func (d *driver) events(ctx context.Context, cards []*card, out chan<- gpu.Sample) {
	if !d.can("nvmlEventSetCreate") {
		return
	}
	set, ret := d.lib.EventSetCreate()
	if ret != nvml.SUCCESS {
		fmt.Fprintln(os.Stderr, (&driverError{"Xids are not reported", ret}).Error())
		return
	}
	defer set.Free()
	byUUID := make(map[string]*card)
	for _, c := range cards {
		if c.device == nil {
			continue
		}
		if ret := c.device.RegisterEvents(nvml.EventTypeXidCriticalError, set); ret != nvml.SUCCESS {
			fmt.Fprintln(os.Stderr, (&driverError{fmt.Sprintf("Xids of GPU %d are not reported", c.Index), ret}).Error())
			continue
		}
		byUUID[c.UUID] = c
	}
	const patience = 500 // milliseconds, after which it looks whether to go on
	for ctx.Err() == nil && len(byUUID) > 0 {
		event, ret := set.Wait(patience)
		switch ret {
		case nvml.SUCCESS:
		case nvml.ERROR_TIMEOUT:
			continue
		default:
			// A lost GPU makes every wait end at once.
			select {
			case <-ctx.Done():
			case <-time.After(patience * time.Millisecond):
			}
			continue
		}
		uuid, ret := event.Device.GetUUID()
		c := byUUID[uuid]
		if ret != nvml.SUCCESS || c == nil {
			continue
		}
		xid := gpu.Xid{Code: event.EventData, MIG: c.instances[[2]int{int(event.GpuInstanceId), int(event.ComputeInstanceId)}]}
		select {
		case out <- gpu.Sample{Time: time.Now(), UUID: uuid, Xid: &xid}:
		case <-ctx.Done():
		}
	}
}
