package api

import (
	"context"
	"net/http"

	"github.com/iterait/shepherd/job"
)

// gpuServer serves what is known of GPUs.
type gpuServer struct {
	answers
	gpus func(ctx context.Context, node string) (job.GPUs, error)
}

// ListGPUs answers GET /gpus.
func (s *gpuServer) ListGPUs(w http.ResponseWriter, r *http.Request, params ListGPUsParams) {
	known, err := s.gpus(r.Context(), nodeOf(params.Node))
	if err != nil {
		s.fail(w, r, err)
		return
	}
	s.answer(w, r, http.StatusOK, shownGPUs(known))
}

// nodeOf is the node that a request names; empty for none.
func nodeOf(param *string) string {
	if param == nil {
		return ""
	}
	return *param
}

// shownGPUs converts GPUs to the API's type.
func shownGPUs(known job.GPUs) GPUList {
	answer := GPUList{
		Driver: orNull(known.Driver), Cuda: orNull(known.CUDA), Trouble: orNull(known.Trouble),
		Gpus: []GPU{}, Others: []OtherDevice{},
	}
	for _, g := range known.GPUs {
		shown := GPU{
			Index: g.Index, Uuid: g.UUID, Name: g.Name, Memory: g.Memory, Used: g.Used,
			Utilization: g.Utilization, Power: g.Power, Temperature: g.Temperature,
			Health: GPUHealth(g.Health), Detail: orNull(g.Detail),
			OutSince: job.FormatTime(g.Since), RetestAt: job.FormatTime(g.Retest),
			Sheep: users(g.Sheep), Foreign: []GPUProcess{},
		}
		if g.ECC != nil {
			errors := int64(*g.ECC)
			shown.UncorrectableErrors = &errors
		}
		for _, p := range g.Foreign {
			shown.Foreign = append(shown.Foreign, GPUProcess{Pid: p.PID, Name: p.Name, Used: p.Used})
		}
		answer.Gpus = append(answer.Gpus, shown)
	}
	for _, d := range known.Others {
		answer.Others = append(answer.Others, OtherDevice{Name: d.Name, Sheep: users(d.Sheep)})
	}
	return answer
}

// users are the sheep that have a share of a device.
func users(sheep []job.DeviceUser) []DeviceUser {
	shown := []DeviceUser{}
	for _, u := range sheep {
		one := DeviceUser{Name: u.Sheep, Instance: orNull(u.Device), Shared: u.Shared, Job: orNull(string(u.Job)), Used: u.Used}
		if u.Budget > 0 {
			one.Budget = &u.Budget
		}
		if !u.Model.IsZero() {
			one.Model = Model{Name: &u.Model.Name, Version: &u.Model.Version}
		}
		shown = append(shown, one)
	}
	return shown
}
