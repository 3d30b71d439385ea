import yaml

from tasks.demo import LINE, NEW, with_task


def test_one_line_is_added_and_nothing_else(request):
    text = (request.config.rootpath / "params.yaml").read_text().replace(LINE, "")
    added = with_task(text)
    assert added.replace(LINE, "") == text
    before, after = yaml.safe_load(text), yaml.safe_load(added)
    assert after["recommend"]["tasks"].pop(NEW) == {
        "given": "event_id = 'item_view'",
        "positive": "event_id = 'buy_comp'",
        "within": "session",
    }
    assert before == after
