package job

import (
	"errors"
	"fmt"
	"slices"
)

// MaxAfter is how many jobs a job can be after.
const MaxAfter = 100

// CheckAfter says what is wrong with the jobs that a job is to be after: there are more
// than MaxAfter, one is named twice, or one has a name that no job can have.
func CheckAfter(after []ID) error {
	if len(after) > MaxAfter {
		return fmt.Errorf("there are %d jobs, at most %d can be waited for", len(after), MaxAfter)
	}
	for i, id := range after {
		if _, err := ParseID(string(id)); err != nil {
			return err
		}
		if slices.Contains(after[:i], id) {
			return fmt.Errorf("job `%s` is named twice", id)
		}
	}
	return nil
}

// CheckGroup says what is wrong with the name of a group, which is made as a job's id is;
// empty is none.
func CheckGroup(group string) error {
	if group == "" {
		return nil
	}
	if _, err := ParseID(group); err != nil {
		return errors.Join(errors.New("a group is named as a job is"), err)
	}
	return nil
}
