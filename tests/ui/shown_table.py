"""What a gr.Dataframe shows: `await shown_rows(page.locator("#batch-table"), 3)`, once there are three rows."""

from playwright.async_api import Locator, expect


async def shown_rows(table: Locator, count: int) -> list[list[str]]:
    rows = table.locator(".virtual-row")
    await expect(rows).to_have_count(count)
    return [
        [(await cell.inner_text()).strip() for cell in await row.get_by_role("gridcell").all()]
        for row in await rows.all()
    ]
